"""The file by which a repository says that it holds a variant: what was made of which checkpoint, and how far it drifts."""

VARIANT_FILE = "safe_dtype.json"
VARIANT_SCHEMA = "safe_dtype.variant/1"
NEEDS = (None, "safe_dtype")  # what must load the variant: None stands for plain transformers
