"""A rescale in a real model: folded in, proved, kept in force, saved."""
