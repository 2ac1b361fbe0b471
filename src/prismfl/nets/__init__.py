"""The frozen generator, its masks, and the frozen feature networks."""
