"""What a caller of training gets wrong: said where it shows, with what to write."""
