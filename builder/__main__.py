"""`python -m builder` is the command `chandra-spectra`."""

from builder.cli import main

main()
