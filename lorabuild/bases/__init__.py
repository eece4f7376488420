"""What people have as a base: single files, diffusers folders and VAEs; where each tensor lies in them, and what it is."""
