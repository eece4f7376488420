"""LoRA files as the world writes them: names, layers, which ranks stay. Headers only: no torch, no numpy at import."""
