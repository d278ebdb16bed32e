"""The random numbers that a window of training draws: of torch on all devices, of Python, and of NumPy."""

from __future__ import annotations

import random
import sys

from ..devices.random_states import RandomStates


class RandomNumbers:
    """The states of all generators that programs draw from, to be set again."""

    __slots__ = ("_numpy", "_python", "_torch")

    def __init__(self) -> None:
        self._torch = RandomStates()
        self._python = random.getstate()
        numpy = sys.modules.get("numpy.random")
        self._numpy = numpy.get_state() if numpy is not None else None

    def set_again(self) -> None:
        """Have everything draw as it would have when the states were read."""
        self._torch.set_again()
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy.random"].set_state(self._numpy)

    def have_moved(self) -> bool:
        """Whether numbers have been drawn since."""
        if self._torch.have_moved() or self._python != random.getstate():
            return True
        if self._numpy is None:
            return False
        _, keys, *rest = self._numpy
        _, keys_now, *rest_now = sys.modules["numpy.random"].get_state()
        return rest != rest_now or bool((keys != keys_now).any())
