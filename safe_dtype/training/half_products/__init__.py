"""Products of float16 training that overflow, scaled by powers of two in forward and in backward."""
