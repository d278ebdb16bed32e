"""The checkpoint itself is run and measured before a plan may round or rescale it."""
