"""The frozen generator: its layers, masks, finished models, and images from these."""
