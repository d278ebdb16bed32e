"""Adapters to other tools, one folder a tool; installed as `safe_dtype.integrations`."""
