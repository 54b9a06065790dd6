"""Finished packages, and how they are made."""
