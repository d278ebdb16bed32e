"""The templates of model cards, as data; installed as `safe_dtype.model_cards`."""
