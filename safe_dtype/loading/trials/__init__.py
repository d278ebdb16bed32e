"""What a checkpoint is measured to do before a plan may round or rescale it."""
