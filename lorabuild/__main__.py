"""`python -m lorabuild` is the command `lorabuild`."""

from lorabuild.cli import main

main()
