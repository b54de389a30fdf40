"""From an artifact to an engine, and from an engine to numbers that can be trusted."""
