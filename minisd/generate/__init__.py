"""python -m minisd.generate: pictures from words, one, many or in grids, as PNG files that say how they were made."""
