"""The remote store: how it is reached, what lies on it, and when a build asks it."""
