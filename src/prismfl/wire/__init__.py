"""What travels: shared draws, masks as bytes, and the frames around them."""
