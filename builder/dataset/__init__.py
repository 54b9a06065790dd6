"""The prepared folder: its format, how it is written and how it is read."""
