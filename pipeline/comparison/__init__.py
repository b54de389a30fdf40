"""Runs and profiles side by side: which engine is better, by how much, where, and what of it may be chance."""
