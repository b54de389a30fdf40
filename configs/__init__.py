"""Recipes that come with potstill; `potstill run digits` finds `digits.yaml` here."""
