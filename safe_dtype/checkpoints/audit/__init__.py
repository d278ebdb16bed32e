"""Can float16 hold the weights of a checkpoint? Every number of it is read."""
