"""From product files to a spectrum, with Sherpa."""
