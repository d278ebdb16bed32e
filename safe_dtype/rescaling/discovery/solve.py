"""Whole numbers that solve a homogeneous system in which some unknowns are fixed, moving the preferred ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_DEPENDENT = 1e-7  # what is left of a column, of its own size, once those before it are taken out
_SOLVED = 1e-7  # what may be left of the right-hand side, of its own size
_WHOLE = 1e-4
_NOTHING = 1e-12  # of an equation's length: rounding of float64 in place of a derivative that is zero


def solve(matrix: Tensor, fixed: Mapping[int, int], free: Sequence[int]) -> dict[int, int] | None:
    """Return the unknowns that are not zero, the fixed ones included; None if no whole numbers solve the system.

    Of the free unknowns those are used that come first: each that does not depend on the ones before it.

    Args:
        matrix: (equations, unknowns), float64, equations of length 1.
        fixed: Values of unknowns. All that are neither fixed nor free are zero.
        free: Unknowns, the preferred ones first.
    """
    wanted = torch.zeros(len(matrix), dtype=torch.float64)
    for number, value in fixed.items():
        wanted -= value * matrix[:, number]
    size = float(wanted.norm())
    if size < _NOTHING:
        return {number: value for number, value in fixed.items() if value}
    basis = independent(matrix, free)
    if not basis:
        return None
    columns = matrix[:, basis]
    lengths = columns.norm(dim=0)
    scaled = torch.linalg.lstsq(columns / lengths, wanted[:, None], driver="gelsd").solution[:, 0]
    if float((columns / lengths @ scaled - wanted).norm()) > _SOLVED * size:
        return None
    powers = {number: value for number, value in fixed.items() if value}
    for number, value in zip(basis, (scaled / lengths).tolist(), strict=True):
        whole = round(value)
        if abs(value - whole) > _WHOLE:
            return None
        if whole:
            powers[number] = whole
    return powers


def independent(matrix: Tensor, columns: Sequence[int]) -> list[int]:
    """Return those of `columns` that do not depend linearly on the ones before them."""
    live = [number for number in columns if float(matrix[:, number].abs().max()) > _NOTHING]
    basis: list[int] = []
    directions = torch.zeros(len(matrix), min(len(matrix), len(live)), dtype=torch.float64)
    for number in live:
        if len(basis) == directions.shape[1]:
            break
        before = directions[:, : len(basis)]
        column = matrix[:, number] / matrix[:, number].norm()
        for _ in range(2):  # once is not enough where columns are nearly parallel
            column = column - before @ (before.T @ column)
        if float(column.norm()) > _DEPENDENT:
            directions[:, len(basis)] = column / column.norm()
            basis.append(number)
    return basis
