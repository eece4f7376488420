"""The verbs of the command line that work on files, without a repository: one module each."""
