"""Change a model while nobody else runs it: whoever runs models in several threads says how that is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import nn

Way = Callable[[nn.Module], AbstractContextManager[object]]

_ways: list[Way] = []


def wait_by(way: Way) -> None:
    """Have `alone` enter what `way` returns for a model, too."""
    _ways.append(way)


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread runs `model`, and keep new calls waiting meanwhile."""
    with ExitStack() as waiting:
        for way in _ways:
            waiting.enter_context(way(model))
        yield
