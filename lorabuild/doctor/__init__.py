"""Look at an installation: what a build needs of the machine, the packages and the repository's surroundings."""
