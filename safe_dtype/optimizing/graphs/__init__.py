"""What of a model captures as a graph, and what ends it."""
