"""What a family of failure texts is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ...facts import Dtype
from ..failure import FailureKind


def any_of(*patterns: str) -> re.Pattern[str]:
    """Return what matches a text that holds one of `patterns`: in any case, over several lines."""
    return re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)


def _always(_text: str, _dtypes: tuple[Dtype, ...]) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Family:
    """The texts of one kind of failure, from torch and the libraries around it.

    The first family with a matching text decides, even where its `is_curable` then says no.
    """

    kind: FailureKind
    texts: re.Pattern[str]
    exception_names: frozenset[str] = frozenset()  # classes that belong here whatever their text, before all families
    is_curable: Callable[[str, tuple[Dtype, ...]], bool] = _always  # of a matching text and the dtypes that it names
    # The dtypes in a text are the two that met, and none of them is one that would work.
    names_both_sides: bool = False
