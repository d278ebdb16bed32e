"""One plan for the ranks that load a model: notes between them, and what they come to. No collective, so nobody hangs."""
