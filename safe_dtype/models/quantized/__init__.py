"""What quantizers keep in a model, and what has to be done with it."""
