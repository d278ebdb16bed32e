"""How many bits each rescale takes, from the largest numbers that a model computes."""
