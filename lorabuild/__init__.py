"""make for LoRAs: one manifest a LoRA, `doit` rebuilds only what is stale."""

__version__ = "0.1.0"
