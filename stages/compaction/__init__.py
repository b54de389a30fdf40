"""Compact filters in the place of dense ones."""
