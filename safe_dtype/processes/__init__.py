"""Other processes: run to their end, or forked from this one."""
