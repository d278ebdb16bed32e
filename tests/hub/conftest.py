"""The loopback Hub of the publishing tests, for the room that talks to it."""

from publishing.conftest import hub, pytest_itemcollected

__all__ = ["hub", "pytest_itemcollected"]
