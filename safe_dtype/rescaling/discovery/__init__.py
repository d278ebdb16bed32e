"""Find the exact rescalings of an architecture on a tiny twin of it, and transfer them to the real model."""
