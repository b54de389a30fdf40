"""Choosing channels, cutting them with everything that hangs on them, and proving that nothing else was cut."""
