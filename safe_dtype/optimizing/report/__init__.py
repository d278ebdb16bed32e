"""Which attempt is used, and the pages that say why."""
