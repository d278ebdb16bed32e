"""DistributedDataParallel: a rank that failed runs the collectives that it owes the others, where that can be known."""
