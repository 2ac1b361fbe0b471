"""Distances and readability of samples.  Nothing here is ever matched in training."""
