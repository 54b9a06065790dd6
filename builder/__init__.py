"""What `chandra_spectra` is made of: one module for each stage that the data goes through."""

__version__ = "0.1.0"
