"""The base of all errors and warnings."""


class SafeDtypeError(Exception):
    """Base of all errors raised by safe_dtype."""


class SafeDtypeWarning(UserWarning):
    """Something the caller should change: a slow or wrong dtype that was ordered, a config that lies."""
