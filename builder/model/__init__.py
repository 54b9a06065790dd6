"""The terms of the project: nothing here opens a file."""
