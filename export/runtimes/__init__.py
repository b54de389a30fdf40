"""One module a runtime: its target, as a recipe writes it, `build` to make an engine's file and `Engine` to run it."""
