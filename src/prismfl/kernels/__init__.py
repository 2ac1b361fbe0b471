"""C loops with their torch equals, and recorded steps: the same numbers, sooner."""
