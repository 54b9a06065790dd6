"""The catalog and its files, as they come in."""
