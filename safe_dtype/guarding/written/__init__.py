"""What a step writes into beside its results, and the way back."""
