"""The command `prismfl`."""
