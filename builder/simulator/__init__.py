"""An archive that is made up here, and its server."""
