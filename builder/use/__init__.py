"""Everything that is done with a finished folder."""
