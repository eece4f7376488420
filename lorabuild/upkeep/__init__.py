"""What `gc`, `pull` and `push` do with the store."""
