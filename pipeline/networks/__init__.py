"""The built-in networks, one file a family: a subclass of `Network` is found by its name."""
