"""lora.lock, and the lock of a running build."""
