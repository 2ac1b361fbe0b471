"""A whole run over any engine: from settings to a finished model in a folder."""
