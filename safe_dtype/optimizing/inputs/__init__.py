"""The batches that a model is traced, verified and timed on."""
