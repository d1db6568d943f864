"""Images, rasters and lists of pairs as files, and what is written of a registration."""
