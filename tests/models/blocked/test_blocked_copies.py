"""Copies of a laid-out module, and modules that die: each goes its own way."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from numerics.laid_out import MARKS, load, logits, near
from torch import Tensor, nn
from torch.nn.utils import parametrize

from safe_dtype.models.block_layout import blocks_of, lay_out

pytestmark = MARKS


BF16 = torch.bfloat16


def first(model: Any) -> nn.Linear:
    """Return one linear module."""
    return model.model.decoder.layers[0].fc1


class Doubling(nn.Linear):
    """A class that somebody gives a module later."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
        """Multiply, and double."""
        return 2 * super().forward(input)


def test_a_method_without_its_module(folder: Path) -> None:
    """A forward that outlives its module says so, and does not answer."""
    model = load(folder)
    lay_out(model)
    forward = first(model).forward
    del model
    gc.collect()
    with pytest.raises(ReferenceError, match="module"):
        forward(torch.ones(1, 512, dtype=BF16))


def test_modules_die_with_their_last_user(folder: Path) -> None:
    """A laid-out model is no circle: it is freed at once, not at the next collection."""
    model = load(folder)
    lay_out(model)
    module, table = weakref.ref(first(model)), weakref.ref(blocks_of(first(model)).tensor)
    gc.disable()
    try:
        model.model.decoder.layers[0].fc1 = nn.Identity()
        assert (module(), table()) == (None, None)
    finally:
        gc.enable()


class Halves(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Halve."""
        return weight / 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is halved."""
        return weight


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle-2": lambda one: pickle.loads(pickle.dumps(one, 2)),
    "pickle-5": lambda one: pickle.loads(pickle.dumps(one, 5)),
    "torch-save": lambda one: _saved(one),
    "python-pickle": lambda one: pickle._loads(pickle._dumps(one)),  # type: ignore[attr-defined]
    "replicated": lambda one: _with_parameters(one._replicate_for_data_parallel(), one),
    "copied-dict": lambda one: _with_dict(one),
    "by-hand-update": lambda one: _by_hand(one, lambda other: other.__dict__.update(one.__dict__)),
    "by-hand-dict": lambda one: _by_hand(one, lambda other: other.__dict__.update(dict(one.__dict__))),
    "by-hand-copy": lambda one: _by_hand(one, lambda other: other.__dict__.update(copy.copy(one.__dict__))),
    "by-hand-stars": lambda one: _by_hand(one, lambda other: other.__dict__.update(**one.__dict__)),
    "by-hand-vars": lambda one: _by_hand(one, lambda other: other.__dict__.update(vars(one) | {})),
    "by-hand-items": lambda one: _by_hand(
        one, lambda other: [object.__setattr__(other, name, value) for name, value in one.__dict__.items()]
    ),
    "by-hand-names": lambda one: _by_hand(
        one, lambda other: [object.__setattr__(other, name, one.__dict__[name]) for name in one.__dict__]
    ),
}


def _by_hand(module: nn.Module, fill: Callable[[nn.Module], Any]) -> nn.Module:
    other = type(module).__new__(type(module))
    fill(other)
    return other


def _with_parameters(replica: Any, module: nn.Module) -> Any:
    replica._parameters.update(module._parameters)
    return replica


def _saved(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def _with_dict(module: nn.Module) -> nn.Module:
    other = type(module).__new__(type(module))
    other.__dict__ = copy.deepcopy(module.__dict__, {id(module): other})
    return other


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.embed_tokens"])
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_go_their_own_way(make: Callable[[Any], Any], name: str, tied: tuple[Any, Any]) -> None:
    """A copy computes with its own weights, whatever becomes of them, and leaves the original as it is."""
    module, expected = (one.get_submodule(name) for one in tied)
    x = torch.tensor([4, 5]) if name.endswith("tokens") else torch.randn(2, 512, dtype=BF16)
    with torch.no_grad():
        before = module(x)
        twin = make(module)
        assert type(twin) is type(module)
        assert torch.equal(twin(x), expected(x))
        twin._parameters = {key: one for key, one in twin._parameters.items()}  # noqa: C416  (it is a dict of its own)
        twin.weight = nn.Parameter(torch.ones_like(expected.weight))
        expected.weight = nn.Parameter(torch.ones_like(expected.weight))
        assert torch.equal(twin(x), expected(x))
        assert torch.equal(module(x), before)
        assert vars(twin).keys() - {"forward", "_is_replica", "_former_parameters"} <= vars(expected).keys()


def test_a_copy_by_hand_needs_no_original(model: Any, plain: Any) -> None:
    """A module that takes the place of one whose attributes it was given computes as in a plain model."""
    for one in (model, plain):
        twin = _by_hand(first(one), lambda other, one=one: other.__dict__.update(first(one).__dict__))
        twin.__class__ = Doubling
        one.model.decoder.layers[0].fc1 = twin
    gc.collect()
    assert near(logits(model), logits(plain))


def test_a_copy_of_a_parametrized_module(model: Any, plain: Any) -> None:
    """Torch copies a parametrized module's `__dict__` as it is: the copy has weights of its own all the same."""
    for one in (model, plain):
        parametrize.register_parametrization(first(one), "weight", Halves())
    found, expected = (copy.deepcopy(first(one)) for one in (model, plain))
    x = torch.randn(3, 512, dtype=BF16)
    with torch.no_grad():
        for one in (found, expected):
            one.parametrizations.weight.original.data.fill_(3)
        assert torch.equal(found(x), expected(x))
        assert near(first(model)(x), first(plain)(x), 0.01)
        again = copy.deepcopy(found)
        again.parametrizations.weight.original.data.fill_(5)
        assert not torch.equal(again(x), found(x))


def test_a_copy_of_a_module_with_hooks_of_accelerate(model: Any, plain: Any) -> None:
    """What accelerate keeps of a module to put it back is in a copy that of the copy."""
    x = torch.randn(3, 512, dtype=BF16)
    for one in (model, plain):
        accelerate.hooks.add_hook_to_module(first(one), accelerate.hooks.ModelHook())
    with torch.no_grad():
        assert near(first(model)(x), first(plain)(x), 0.01)
        found, expected = (copy.deepcopy(first(one)) for one in (model, plain))
        for one in (found, expected):
            one.weight.data.fill_(2)
        assert torch.equal(found(x), expected(x))
        for one in (found, expected):
            accelerate.hooks.remove_hook_from_module(one)
        assert torch.equal(found(x), expected(x))
        for one in (model, plain):
            accelerate.hooks.remove_hook_from_module(first(one))
        assert near(first(model)(x), first(plain)(x), 0.01)


def _swapped(model: Any) -> None:
    one, other = (getattr(model.model.decoder.layers[0].self_attn, name) for name in ("k_proj", "v_proj"))
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__


def _shared(model: Any) -> None:
    attention = model.model.decoder.layers[0].self_attn
    attention.k_proj.__dict__ = attention.v_proj.__dict__


def _taken_over(model: Any) -> None:
    attention = model.model.decoder.layers[0].self_attn
    heir = nn.Linear(1, 1)
    heir.__dict__ = attention.v_proj.__dict__
    attention.v_proj = heir  # the module that it was made for is gone


class Doubled(nn.Linear):
    """A class with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice as much."""
        return 2 * super().forward(x)


def _in_another_class(model: Any) -> None:
    attention = model.model.decoder.layers[0].self_attn
    heir = Doubled(1, 1)
    heir.__dict__ = attention.v_proj.__dict__
    attention.v_proj = heir


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("change", [_swapped, _shared, _taken_over, _in_another_class])
def test_a_dict_that_is_given_to_another_module(change: Any, rows: int, folder: Path) -> None:
    """A module computes with what its `__dict__` holds, whoever had that before."""
    model, plain = load(folder), load(folder)
    assert lay_out(model).modules
    for one in (model, plain):
        logits(one, rows)
        change(one)
        gc.collect()
    expected = logits(plain, rows)
    for _ in range(2):
        assert near(logits(model, rows), expected)
