"""The command ``chandra-spectra``."""
