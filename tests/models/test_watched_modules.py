"""A watcher is told before and after modules are put into another one, and the dict is a plain one for all else."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from safe_dtype.models.watched_modules import WatchedModules, watch_dicts


class Notes:
    """A watcher that notes what it is told, and what was there at that time."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.before: list[tuple[str, str, str]] = []
        self.after: list[str] = []

    def before_module(self, modules: WatchedModules, name: str, module: nn.Module | None) -> None:
        """Note it."""
        self.before.append((name, type(modules.get(name)).__name__, type(module).__name__))

    def after_module(self, module: nn.Module | None, /) -> None:
        """Note it."""
        self.after.append(type(module).__name__)

    def before_parameter(self, name: str) -> None:
        """Note it."""
        self.before.append((name, "Parameter", "NoneType"))

    def is_copied_in(self, memo: dict[int, Any]) -> bool:
        """Whether the root is copied."""
        return id(self.root) in memo


def watched() -> tuple[nn.Sequential, Notes]:
    """Return a watched module that holds two others."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    notes = Notes(model)
    watch_dicts(model, notes)
    return model, notes


CHANGES: dict[str, tuple[Callable[[Any], Any], list[tuple[str, str, str]]]] = {
    "set": (lambda model: setattr(model, "0", nn.ReLU()), [("0", "Linear", "ReLU")]),
    "index": (lambda model: model.__setitem__(1, nn.ReLU()), [("1", "Identity", "ReLU")]),
    "added": (lambda model: model.append(nn.ReLU()), [("2", "NoneType", "ReLU")]),
    "deleted": (lambda model: model.__delitem__(1), [("1", "Identity", "NoneType")]),
    "popped": (lambda model: model._modules.pop("1"), [("1", "Identity", "NoneType")]),
    "the last": (lambda model: model._modules.popitem(), [("1", "Identity", "NoneType")]),
    "updated": (lambda model: model._modules.update({"0": nn.ReLU()}), [("0", "Linear", "ReLU")]),
    "cleared": (
        lambda model: model._modules.clear(),
        [("0", "Linear", "NoneType"), ("1", "Identity", "NoneType")],
    ),
    "None": (lambda model: setattr(model, "1", None), [("1", "Identity", "NoneType")]),
    "the same": (lambda model: setattr(model, "1", model[1]), []),
    "a number": (lambda model: setattr(model, "number", 3), []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_told(name: str) -> None:
    """Each way to change what a module holds is told, with what is there and what comes."""
    change, expected = CHANGES[name]
    model, notes = watched()
    change(model)
    assert notes.before == expected
    assert notes.after == [new for _, _, new in expected if new != "NoneType" or name == "None"]


def test_whole_copy_has_its_own_watcher() -> None:
    """A copy of the whole is watched by a copy of the watcher."""
    model, notes = watched()
    copied = copy.deepcopy(model)
    copied.append(nn.ReLU())
    assert notes.before == []
    modules = copied.__dict__["_modules"]
    assert modules.watcher.before == [("2", "NoneType", "ReLU")]
    assert modules.watcher.root is copied


def test_copied_part_is_not_watched() -> None:
    """Nobody is told of a copy of a part, and the watcher is not copied."""
    model, notes = watched()
    notes.root = nn.Identity()
    copied = copy.deepcopy(model)
    copied.append(nn.ReLU())
    assert notes.before == []
    assert copied.__dict__["_modules"].watcher is None


def test_pickled_is_plain() -> None:
    """What is pickled holds a plain dict."""
    model, _ = watched()
    loaded = pickle.loads(pickle.dumps(model))
    assert type(loaded.__dict__["_modules"]) is dict
    assert [type(one) for one in loaded] == [nn.Linear, nn.Identity]
