"""What an optimization made, loaded and called again."""
