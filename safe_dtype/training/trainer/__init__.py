"""The Trainer of transformers: steps that are run again, what it logs of them, and what its checkpoints hold."""
