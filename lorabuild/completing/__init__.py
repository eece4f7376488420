"""Completion of what is typed in bash, zsh and fish."""
