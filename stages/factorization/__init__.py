"""Low-rank factors of layers, and where they pay."""
