"""Copies of LoRAs for other programs: their names, what stands beside a file, and what may be written over."""
