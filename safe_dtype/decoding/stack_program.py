"""All decoder layers of a model, for one position of a few sequences, as one program of compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..kernels.attention_row import attention_of_row, has_attention
from ..kernels.norm_rows import norm_of_rows
from ..kernels.programs.call import At, KernelCall
from ..kernels.programs.kernel_program import Program, can_run
from ..kernels.programs.row_parts import can_add, copy_of_heads, sum_of
from ..kernels.rotary import turn_of_heads
from ..kernels.row_product import product_of_rows
from ..models.forwards.layer_parts import PartsOfLayer

_LINE = 64  # bytes: what is written lies at multiples


@dataclass(frozen=True, slots=True)
class StepKind:
    """What is the same in all layers of a step: of so many sequences, in a dtype, on so many threads."""

    dtype: torch.dtype
    rows: int
    threads: int
    width: int
    table_strides: tuple[
        int, int, int, int
    ]  # of cosines, and of sines: from one sequence, and one position, to the next


class Scratch:
    """Where parts of memory begin that each layer writes anew, in bytes from one address on."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> At:
        """Return where so many bytes begin."""
        begin, self.size = self.size, self.size + -(-size // _LINE) * _LINE
        return At("scratch", begin)


class StackProgram:
    """The program of some layers, and how much memory it needs.

    Its names: "scratch"; "x", "cos" and "sin"; "positions" of all keys, the new ones among them; and of each layer, by its
    number, "out 0", "keys 0", "values 0", "new keys 0", "new values 0", and "key batch 0", "key head 0", "value batch 0"
    and "value head 0", which are strides in numbers.
    """

    def __init__(self, layers: Sequence[PartsOfLayer], kind: StepKind) -> None:
        scratch = Scratch()
        calls: list[KernelCall] = []
        places = _Places.of(layers, kind, scratch)
        for number, layer in enumerate(layers):
            calls += _calls(number, layer, kind, places)
        self._scores = scratch.size
        self._heads = max(layer.heads for layer in layers) * kind.rows
        self._program = Program(calls, kind.threads)

    def bytes_for(self, positions: int) -> int:
        """Return how many bytes "scratch" is to have for so many positions."""
        return self._scores + 4 * self._heads * positions

    def run(self, begins: dict[str, int]) -> None:
        """Compute the layers, with what each name stands for."""
        self._program.run(begins)


def can_be_program(layer: PartsOfLayer, dtype: torch.dtype) -> bool:
    """Whether a layer can be a part of a program on this machine."""
    return (
        can_run() and can_add(dtype) and has_attention(layer.heads, layer.shared, layer.head_dim, dtype)
        and layer.of_values == layer.shared * layer.head_dim
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Places:
    """Where what is between two products is written; the next layer writes it anew."""

    normed: At
    projected: tuple[At, At, At]
    turned: At
    attended: At
    product: At
    sum: At
    gated: tuple[At, At]
    wide: At  # of what a product multiplies, in float32
    wide_query: At
    scores: At  # last: how many depends on the positions

    @classmethod
    def of(cls, layers: Sequence[PartsOfLayer], kind: StepKind, scratch: Scratch) -> _Places:
        def rows(width: int, size: int = kind.dtype.itemsize) -> At:
            return scratch.take(kind.rows * width * size)

        queries = max(layer.heads * layer.head_dim for layer in layers)
        shared = max(layer.shared * layer.head_dim for layer in layers)
        inner = max(layer.gate[0].shape[0] for layer in layers)
        return cls(
            normed=rows(kind.width), projected=(rows(queries), rows(shared), rows(shared)), turned=rows(queries),
            attended=rows(queries), product=rows(kind.width), sum=rows(kind.width), gated=(rows(inner), rows(inner)),
            wide=rows(max(kind.width, queries, inner), 4), wide_query=rows(queries, 4), scores=At("scratch", scratch.size),
        )  # fmt: skip


def _calls(number: int, layer: PartsOfLayer, kind: StepKind, at: _Places) -> list[KernelCall]:
    dtype, rows, width = kind.dtype, kind.rows, kind.width
    of_product = dtype, rows, kind.threads
    x = At("x") if number == 0 else At(f"out {number - 1}")
    queries, keys, values = at.projected
    calls = [
        norm_of_rows(x, at.normed, layer.norm[0].data_ptr(), layer.norm[1], (rows, width), dtype),
        product_of_rows(at.normed, at.wide, [*zip(layer.projections, at.projected, strict=True)], of_product),
    ]
    for place, heads, norm in zip(at.projected, (layer.heads, layer.shared), layer.head_norms, strict=False):
        shape = (rows * heads, layer.head_dim)
        calls.append(norm_of_rows(place, place, norm[0].data_ptr(), norm[1], shape, dtype))
    of_keys = (At(f"key batch {number}"), At(f"key head {number}"))
    of_values = (At(f"value batch {number}"), At(f"value head {number}"))
    in_row = (layer.heads * layer.head_dim, layer.head_dim, layer.head_dim)
    new_keys = At(f"new keys {number}")
    tables = kind.table_strides
    calls += (
        turn_of_heads(
            [(queries, at.turned, layer.heads, in_row), (keys, new_keys, layer.shared, (*of_keys, layer.head_dim))],
            (At("cos"), *tables[:2]), (At("sin"), *tables[2:]), (rows, 1, layer.head_dim), dtype,
        ),
        copy_of_heads(
            values, At(f"new values {number}"), (rows, layer.shared, layer.head_dim),
            (layer.shared * layer.head_dim, layer.head_dim, *of_values), dtype,
        ),
        attention_of_row(
            (at.turned, At(f"keys {number}"), At(f"values {number}"), at.attended, at.wide_query, at.scores),
            (*of_keys, layer.head_dim, *of_values, layer.head_dim), At("positions"),
            (rows, layer.heads, layer.shared, layer.head_dim), layer.scaling, dtype,
        ),
        product_of_rows(at.attended, at.wide, [(layer.last, at.product)], of_product),
        sum_of(x, at.product, at.sum, rows * width, dtype),
        norm_of_rows(at.sum, at.normed, layer.inner_norm[0].data_ptr(), layer.inner_norm[1], (rows, width), dtype),
        product_of_rows(
            at.normed, at.wide, [(layer.gate, at.gated[0]), (layer.up, at.gated[1])], of_product, is_gated=True
        ),
        product_of_rows(at.gated[0], at.wide, [(layer.last_of_mlp, at.product)], of_product),
        sum_of(at.sum, at.product, At(f"out {number}"), rows * width, dtype),
    )  # fmt: skip
    return calls
