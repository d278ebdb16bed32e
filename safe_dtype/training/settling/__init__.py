"""What the ranks come to where a window has failed."""
