"""The equations of a network of which every exact rescaling is written down by hand."""

from __future__ import annotations

import pytest
import torch
from rescaling.discovery.by_hand import BATCHES, network
from torch import Tensor

from safe_dtype.facts import Part, Rows
from safe_dtype.rescaling.discovery.jacobian import GAINS, Cut, System, Unknowns, system_of
from safe_dtype.rescaling.discovery.knobs import Knob, knobs_of
from safe_dtype.rescaling.discovery.trace import trace
from safe_dtype.rescaling.discovery.twin import Twin

WEIGHT, NUMBER, INPUT, OUTPUT = Part.WEIGHT, Part.NUMBER, Part.INPUT, Part.OUTPUT
BLOCKS = ("layers.0", "layers.1")
NORMS = ("layers.0.norm", "layers.1.norm", "norm")
CUTS = (Cut("layers.0", "in", 0), Cut("layers.0", "out", 0), Cut("layers.1", "out", 0))

Powers = dict[tuple[Part, str] | Cut, int]
EXACT: dict[str, Powers] = {
    "residual": {(INPUT, "layers.0"): 1, **{(WEIGHT, f"{one}.down.weight"): 1 for one in BLOCKS},
                 **{(NUMBER, f"{one}.eps"): 2 for one in NORMS}, **dict.fromkeys(CUTS, 1)},
    "embedding": {(WEIGHT, "embed.weight"): 1, (INPUT, "layers.0"): -1},
    "embedded": {(WEIGHT, "embed.weight"): 1, (OUTPUT, "embed"): -1},
    "head": {(WEIGHT, "norm.weight"): 1, (WEIGHT, "head.weight"): -1},
    **{f"inside {one}": {(WEIGHT, f"{one}.up.weight"): 1, (WEIGHT, f"{one}.down.weight"): -1} for one in BLOCKS},
    **{f"gain of {one}": {(WEIGHT, f"{one}.norm.weight"): 1, (WEIGHT, f"{one}.up.weight"): -1} for one in BLOCKS},
    **{f"before {one}": {(INPUT, one): 1, (NUMBER, f"{one}.eps"): 2} for one in NORMS},
    **{f"after {one}": {(OUTPUT, one): 1, (WEIGHT, f"{one}.weight"): -1} for one in NORMS},
}  # fmt: skip


@pytest.fixture(scope="module")
def twin() -> Twin:
    """Return the network, with its inputs."""
    return Twin(network(), BATCHES)


@pytest.fixture(scope="module")
def knobs(twin: Twin) -> tuple[Knob, ...]:
    """Return all that can be multiplied in it."""
    return knobs_of(twin.model, trace(twin.model, BATCHES), BATCHES[0])


@pytest.fixture(scope="module")
def system(twin: Twin, knobs: tuple[Knob, ...]) -> System:
    """Return all its equations."""
    return system_of(twin, knobs, trace(twin.model, BATCHES).stacks)


def vector(system: System, powers: Powers) -> Tensor:
    """Return powers in the order of the columns of the system."""
    names = [one if isinstance(one, Cut) else (one.part, one.target) for one in system.columns]
    assert powers.keys() <= set(names)
    return torch.tensor([powers.get(name, 0) for name in names], dtype=torch.float64)


@pytest.mark.parametrize("name", EXACT)
def test_exact_ones_solve_it(system: System, name: str) -> None:
    """Each rescaling that is exact solves every equation."""
    assert (system.matrix @ vector(system, EXACT[name])).abs().max() < 1e-10


@pytest.mark.parametrize("name", EXACT)
def test_spoilt_ones_do_not(system: System, name: str) -> None:
    """Without any one of its moves it solves them no more."""
    for left_out in EXACT[name]:
        spoilt = {key: power for key, power in EXACT[name].items() if key != left_out}
        assert (system.matrix @ vector(system, spoilt)).abs().max() > 1e-4


def test_nothing_else_solves_it(system: System) -> None:
    """The equations leave as many ways open as there are exact rescalings."""
    known = torch.stack([vector(system, powers) for powers in EXACT.values()])
    assert torch.linalg.matrix_rank(known) == len(EXACT) == 14
    of_no_effect = 1  # torch's embedding keeps a norm_type, and here it has no norm
    assert torch.linalg.matrix_rank(system.matrix, rtol=1e-9) == len(system.columns) - len(EXACT) - of_no_effect


def test_shape(system: System, knobs: tuple[Knob, ...]) -> None:
    """The unknowns are the knobs and then the cuts; equations have length 1 and say what they are about."""
    assert system.columns == (*knobs, *CUTS)
    assert system.index() == {column: place for place, column in enumerate(system.columns)}
    assert system.matrix.shape == (len(system.ends), len(system.columns))
    torch.testing.assert_close(system.matrix.norm(dim=1), torch.ones(len(system.ends), dtype=torch.float64))
    assert set(system.ends) == {*CUTS, None}


def test_cause_and_effect(system: System) -> None:
    """An equation about a cut holds the cut itself, and nothing that comes after it."""
    place = system.index()
    for end, row in zip(system.ends, system.matrix, strict=True):
        if end is not None:
            later = [place[cut] for cut in CUTS[CUTS.index(end) + 1 :]]
            assert row[place[end]] != 0
            assert not row[later].any()
        head = next(one for one in system.columns if isinstance(one, Knob) and one.target == "head.weight")
        assert bool(row[place[head]]) is (end is None)


def test_about_some(twin: Twin, knobs: tuple[Knob, ...]) -> None:
    """Only equations in which some knob occurs are made; of few unknowns fewer are needed."""
    stacks = trace(twin.model, BATCHES).stacks
    first = [knob for knob in knobs if knob.target == "layers.0.up.weight"]
    assert set(system_of(twin, knobs, stacks, about=first).ends) == {CUTS[1]}
    assert system_of(twin, knobs, stacks, about=()).matrix.shape == (0, len(knobs) + len(CUTS))
    few = system_of(twin, knobs, stacks, about=first, together=1)
    assert len(GAINS) <= len(few.ends) < len(system_of(twin, knobs, stacks, about=first).ends)


def test_without_cuts(twin: Twin, knobs: tuple[Knob, ...]) -> None:
    """Uncut, the equations are about the logits alone."""
    whole = system_of(twin, knobs, ())
    assert (whole.columns, set(whole.ends)) == (knobs, {None})
    powers = {key: power for key, power in EXACT["residual"].items() if not isinstance(key, Cut)}
    assert (whole.matrix @ vector(whole, powers)).abs().max() < 1e-10


def test_the_twin_comes_back(twin: Twin, knobs: tuple[Knob, ...]) -> None:
    """Nothing of the twin is changed."""
    before = {name: one.clone() for name, one in twin.model.named_parameters()}
    system_of(twin, knobs, trace(twin.model, BATCHES).stacks)
    assert all(torch.equal(one, before[name]) for name, one in twin.model.named_parameters())
    assert not any(one.requires_grad for one in twin.model.parameters())
    assert twin.model.norm.eps == 1e-6


def test_rows_of_one_parameter() -> None:
    """Rows of a parameter share its leaf, and each has the derivative of its own rows."""
    leaf = torch.arange(8, dtype=torch.float64).reshape(4, 2)
    halves = tuple(Knob(WEIGHT, "w", rows=Rows(-2, start, start + 0.5)) for start in (0.0, 0.5))
    columns = Knob(WEIGHT, "w", rows=Rows(-1, 0.0, 1.0, offset=1, step=2))
    other, cut = Knob(WEIGHT, "v"), torch.full((3,), 2.0, dtype=torch.float64)
    unknowns = Unknowns((*halves, columns, other))
    unknowns.place({halves[0]: leaf, halves[1]: leaf, columns: leaf, other: leaf.clone()}, [cut])
    assert (len(unknowns.leaves), unknowns.owners, unknowns.count) == (3, [[0, 1, 2], [3], [4]], 5)
    gradients = [torch.ones(2, 4, 2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)]
    spread = unknowns.spread(gradients, [0, 2])
    assert spread.tolist() == [[0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 1 + 3 + 5 + 7, 0, 6]] * 2
    assert unknowns.leaves_of([halves[1]]) == {0}
    assert unknowns.leaves_of([other, columns]) == {0, 1}
    assert unknowns.leaves_of([]) == set()
