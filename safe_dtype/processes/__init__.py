"""Run another Python process to its end."""
