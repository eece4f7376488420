"""The rules of `check`: small functions from what was read to findings; they print nothing and change nothing."""
