"""A staged folder on its way to the Hub, and back."""
