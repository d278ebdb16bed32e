"""A request to the Hub that failed, as the error that a publication raises."""

from __future__ import annotations

from ..errors import NotPublishableError, PublishError
from ..hub.client import Hub
from ..hub.errors import HubError
from .release import State, Target


def publish_error(api: Hub, fault: HubError, state: State, target: Target, visible: str) -> PublishError:
    """Return the error for `fault`: how things stand, what others see now (`visible`), and the next step.

    It is a NotPublishableError where the staged folder is at fault. Where a login decides, it names the account.
    """
    kind = NotPublishableError if fault.ours else PublishError
    return kind(str(state), str(target), api.describe(fault), visible, fault.advice)
