"""Codebooks that the weights of a layer share."""
