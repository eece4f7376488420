"""Where jobs run: one protocol of four calls, and those who keep to it."""
