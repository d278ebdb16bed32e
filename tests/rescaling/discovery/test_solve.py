"""Whole numbers that solve systems written down by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from safe_dtype.rescaling.discovery.solve import independent, solve


def system(*rows: list[float]) -> Tensor:
    """Return equations of length 1."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return matrix / matrix.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("matrix", "fixed", "free", "solution"),
    [
        pytest.param(system([1, 1]), {0: 3}, [1], {0: 3, 1: -3}, id="one-for-the-other"),
        pytest.param(system([1, 2, 0], [0, 1, 1]), {0: 2}, [1, 2], {0: 2, 1: -1, 2: 1}, id="a-chain"),
        pytest.param(system([1, 1]), {0: 0}, [1], {}, id="nothing-to-make-up-for"),
        pytest.param(system([0, 1]), {0: 5}, [1], {0: 5}, id="the-fixed-one-stands-in-no-equation"),
        pytest.param(system([1, -1, 0], [0, 0, 1]), {0: 4, 1: 4}, [2], {0: 4, 1: 4}, id="fixed-ones-that-agree"),
        pytest.param(system([1, 1, 1]), {0: 1}, [2, 1], {0: 1, 2: -1}, id="the-preferred-one-is-moved"),
        pytest.param(system([1, 1, 1]), {0: 1}, [1, 2], {0: 1, 1: -1}, id="whichever-that-is"),
        pytest.param(system([1, 1, 0, 0], [0, 0, 1, 0]), {0: 1}, [1, 2, 3], {0: 1, 1: -1}, id="what-is-not-needed-stays"),
        pytest.param(system([1, 1], [2, 2], [-3, -3]), {0: 1}, [1], {0: 1, 1: -1}, id="the-same-equation-again"),
        pytest.param(system([1, 1e-6]), {0: 1}, [1], {0: 1, 1: -1_000_000}, id="a-short-column"),
    ],
)  # fmt: skip
def test_solutions(matrix: Tensor, fixed: Mapping[int, int], free: list[int], solution: dict[int, int]) -> None:
    """The fixed unknowns have their values, the preferred ones make up for them, and every other one is zero."""
    found = solve(matrix, fixed, free)
    assert found == solution
    vector = torch.zeros(matrix.shape[1], dtype=torch.float64)
    for number, value in solution.items():
        vector[number] = value
    assert (matrix @ vector).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("matrix", "fixed", "free"),
    [
        pytest.param(system([1, 2]), {0: 1}, [1], id="half"),
        pytest.param(system([1, 0]), {0: 1}, [1], id="nothing-makes-up-for-it"),
        pytest.param(system([1, 1]), {0: 1}, [], id="nothing-is-free"),
        pytest.param(system([1, 1, 0]), {0: 1}, [2], id="the-one-that-would-is-not-free"),
        pytest.param(system([1, 1], [1, -1]), {0: 1}, [1], id="two-that-contradict"),
        pytest.param(system([1, 1], [1, 1.00001]), {0: 1}, [1], id="nearly-the-same"),
        pytest.param(system([1, 1, 0], [0, 1, 0], [0, 0, 1]), {0: 1}, [1, 2], id="what-makes-up-is-seen-elsewhere"),
    ],
)
def test_none(matrix: Tensor, fixed: Mapping[int, int], free: list[int]) -> None:
    """Where no whole numbers solve all equations there is no solution."""
    assert solve(matrix, fixed, free) is None


def test_with_rounding() -> None:
    """Derivatives that are a rounding of float64 off make no difference, nor does one in the place of zero."""
    torch.manual_seed(0)
    matrix = system([1, 2, 0], [0, 1, 1]) + 1e-15 * torch.randn(2, 3, dtype=torch.float64)
    assert solve(matrix, {0: 2}, [1, 2]) == {0: 2, 1: -1, 2: 1}
    assert solve(1e-15 * torch.ones(1, 2, dtype=torch.float64), {0: 1}, [1]) == {0: 1}


@pytest.mark.parametrize("seed", range(20))
def test_random(seed: int) -> None:
    """Of a system made around a solution, that one is found: no column depends on the others."""
    random = torch.Generator().manual_seed(seed)
    solution = torch.randint(-3, 4, (8,), generator=random).double()
    solution[0] = 2
    rows = torch.randn(12, 8, generator=random, dtype=torch.float64)
    rows -= (rows @ solution)[:, None] * solution / solution.square().sum()
    free = (torch.randperm(7, generator=random) + 1).tolist()
    wanted = {number: int(value) for number, value in enumerate(solution.tolist()) if value}
    assert solve(rows / rows.norm(dim=1, keepdim=True), {0: 2}, free) == wanted


@pytest.mark.parametrize(
    ("columns", "basis"),
    [
        pytest.param([0, 1, 2, 3, 4], [0, 1], id="in-order"),
        pytest.param([2, 0, 1], [2, 0], id="in-another-order"),
        pytest.param([3, 0], [3], id="multiples"),
        pytest.param([4, 1], [1], id="a-column-of-zeros"),
        pytest.param([], [], id="none"),
    ],
)
def test_independent(columns: list[int], basis: list[int]) -> None:
    """A column that those before it give is left out: x, y, x + y, -5 x, 0."""
    matrix = torch.tensor([[1, 0, 1, -5, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
    assert independent(matrix, columns) == basis


def test_nearly_parallel() -> None:
    """Columns a millionth of a right angle apart are two; a billionth apart they are one."""
    for apart, basis in ((1e-6, [0, 1]), (1e-9, [0])):
        assert independent(torch.tensor([[1.0, 1.0], [0.0, apart]], dtype=torch.float64), [0, 1]) == basis
