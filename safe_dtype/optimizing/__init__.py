"""Find the fastest verified form of a model, and keep a log of everything that was tried."""
