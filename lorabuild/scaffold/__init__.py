"""What `init`, `new` and `set` write: a repository, a project's manifest, one value of it."""
