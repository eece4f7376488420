"""`python -m lorabuild` is the command `lorabuild`."""

from lorabuild.cli import main

if __name__ == "__main__":  # a process that measures norms imports this file, too
    main()
