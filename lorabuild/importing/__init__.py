"""Turn what another trainer was told, or what a LoRA says of itself, into a manifest."""
