"""Public randomness: the same numbers in NumPy, C and torch."""
