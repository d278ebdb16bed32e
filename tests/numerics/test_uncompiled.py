"""Code that runs eagerly for a while."""

import threading
from collections.abc import Iterator

import pytest
import torch

from safe_dtype.numerics import uncompiled


class Compiled:
    """A compiled function that counts how often it was compiled."""

    def __init__(self) -> None:
        self.times = 0
        self.function = torch.compile(lambda x: x + 1, backend=self._backend)

    def _backend(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.times += 1
        return graph

    def compiles(self) -> bool:
        """Whether a call compiles it."""
        torch.compiler.reset()
        before = self.times
        self.function(torch.ones(2))
        return self.times > before


@pytest.fixture
def compiled() -> Iterator[Compiled]:
    """Return a function, and leave torch compiling."""
    yield Compiled()
    torch.compiler.set_stance("default")


def test_within_the_block_alone(compiled: Compiled) -> None:
    """Nothing is compiled within the block, nor in one that it holds."""
    assert compiled.compiles()
    with uncompiled():
        with uncompiled():
            assert not compiled.compiles()
        assert not compiled.compiles()
    assert compiled.compiles()


def test_blocks_that_overlap(compiled: Compiled) -> None:
    """Of two threads the one that began first may end first: then everything compiles again when both have ended."""
    began, may_end = threading.Event(), threading.Event()

    def second() -> None:
        with uncompiled():
            began.set()
            may_end.wait(20)

    thread = threading.Thread(target=second)
    with uncompiled():
        thread.start()
        began.wait(20)
    assert not compiled.compiles()
    may_end.set()
    thread.join()
    assert compiled.compiles()
