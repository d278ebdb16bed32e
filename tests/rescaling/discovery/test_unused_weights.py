"""Weights that the twin had no use for: which they are, and what is done with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from safe_dtype.facts import Gauge, Move, Part
from safe_dtype.rescaling.discovery.jacobian import Cut, System
from safe_dtype.rescaling.discovery.knobs import Knob
from safe_dtype.rescaling.discovery.trace import Stack, Trace
from safe_dtype.rescaling.discovery.unused_weights import completed, idle_parts, idle_weights, never_run

WEIGHT, NUMBER = Part.WEIGHT, Part.NUMBER


class Block(nn.Module):
    """A router, three experts, and an attention to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
        self.cross = nn.Linear(4, 4)


class Model(nn.Module):
    """An image encoder, constants, and two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
        self.positions = nn.Embedding(3, 4)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(4)


STACK = Stack(("layers",), ("layers.0", "layers.1"), normalised=False)


def traced(model: nn.Module, *left_out: str) -> Trace:
    """Return a trace in which all modules ran but those."""
    names = [name for name, _ in model.named_modules()]
    ran = [name for name in names if not name.startswith(left_out)] if left_out else names
    places = {name: place for place, name in enumerate(names)}
    return Trace({name: places[name] for name in ran}, frozenset(), (STACK,), places)


def expert(place: int, layer: int = 0) -> str:
    """Return the name of an expert's weight."""
    return f"layers.{layer}.experts.{place}.0.weight"


# Which they are


@pytest.mark.parametrize(
    ("rows", "idle"),
    [
        pytest.param([[1, 0, 0, 0]], {"b"}, id="one-is-in-no-equation"),
        pytest.param([[1, 0, 0, 0], [0, -1e-9, 1, 0]], set(), id="a-small-number-counts"),
        pytest.param([[1, 1e-13, 0, 1]], {"b"}, id="a-rounding-does-not"),
        pytest.param([], {"a", "b"}, id="no-equations"),
    ],
)
def test_idle_weights(rows: list[list[float]], idle: set[str]) -> None:
    """They stand in no equation; numbers and cuts that do so are no weights."""
    columns = (Knob(WEIGHT, "a"), Knob(WEIGHT, "b"), Knob(NUMBER, "c"), Cut("layers.0", "in", 0))
    matrix: Tensor = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 4)
    assert idle_weights(System(columns, matrix, (None,) * len(rows))) == idle


def test_never_run() -> None:
    """Modules are named of which none in that role ran; one expert that ran stands for the others."""
    model = Model()
    idle = frozenset({expert(1), "layers.0.cross.weight", "layers.0.cross.bias", "layers.1.router.weight"})
    assert never_run(STACK, idle, traced(model, "layers.0.cross", "layers.0.experts.1"), model) == ("layers.0.cross",)


def test_never_run_of_experts() -> None:
    """Where no expert ran, all of them are named; those of the other layer are not."""
    model = Model()
    idle = frozenset(expert(place) for place in range(3))
    assert never_run(STACK, idle, traced(model, "layers.0.experts"), model) == tuple(
        f"layers.0.experts.{place}.0" for place in range(3)
    )
    assert never_run(STACK, idle, traced(model), model) == ()  # they ran, and what they gave was not used


def test_idle_parts() -> None:
    """A part beside the blocks of which no matrix was used is named by its outermost module, and once."""
    model = Model()
    matrices = frozenset({"vision.0.weight", "vision.1.0.weight", "positions.weight", "layers.0.cross.weight"})
    trace = traced(model, "vision", "layers.0.cross")
    assert idle_parts(trace, matrices, model) == ("vision",)
    assert idle_parts(trace, matrices - {"vision.0.weight"}, model) == ("vision.1",)
    assert idle_parts(trace, frozenset(), model) == ()


# What is done with them


def gauge(*moves: Move) -> Gauge:
    """Return a gauge."""
    return Gauge("residual", moves)


def test_an_idle_expert_is_moved_like_the_others() -> None:
    """What plays the role of weights that move alike moves as they do, in its own layer; all else stays."""
    before = gauge(Move(WEIGHT, expert(0), -1), Move(WEIGHT, expert(1), -1), Move(NUMBER, "norm.eps", -2))
    idle = frozenset({expert(2), expert(0, layer=1), "layers.0.cross.weight", "layers.0.experts.2.0.bias"})
    assert completed(before, [STACK], idle, Model()) == gauge(*before.moves, Move(WEIGHT, expert(2), -1))


def test_one_that_was_used_stays() -> None:
    """An expert that is in the equations, and does not move, is not moved."""
    before = gauge(Move(WEIGHT, expert(0), -1))
    assert completed(before, [STACK], frozenset({expert(1)}), Model()) == gauge(
        *before.moves, Move(WEIGHT, expert(1), -1)
    )


def test_where_they_differ() -> None:
    """Where the others do not move alike nobody knows how it would move."""
    before = gauge(Move(WEIGHT, expert(0), -1), Move(WEIGHT, expert(1), 1))
    assert completed(before, [STACK], frozenset({expert(2)}), Model()) == before


def test_one_that_moves_already() -> None:
    """A weight of the gauge is moved once."""
    before = gauge(Move(WEIGHT, expert(0), -1), Move(WEIGHT, expert(1), -1))
    assert completed(before, [STACK], frozenset({expert(1)}), Model()) == before
