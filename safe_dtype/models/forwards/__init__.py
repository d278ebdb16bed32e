"""Forwards that are put into modules in the place of their class's."""
