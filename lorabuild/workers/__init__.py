"""The processes that run jobs: slots, channels, and their end."""
