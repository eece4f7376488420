"""What each of LyCORIS' algorithms computes, and how a layer of the base runs with it."""
