"""Many calls of compiled functions in the place of one, without Python in between."""
