"""What the ranks come to where a window has failed, and what it begins with again."""
