"""Everything that knows tensors: torch lives here, and nothing here knows projects."""
