"""What a run may be asked for, as TOML and options, and what that comes to."""
