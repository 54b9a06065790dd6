"""`python -m builder.cli` is the command `chandra-spectra`."""

from builder.cli.run import main

main()
