"""Pictures: which ones a project wants, how they are named and kept, and those drawn while it trains."""
