"""Batches to trace and to verify a model on: made from its config, or from a batch that was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import NotOptimizableError
from ..nouns.job import Dynamic, Range
from .input_spec import OWN_INPUTS, PLAIN, VARIATIONS, InputKind, Slot, draw
from .signature import slots_for

_BATCH = 2  # a dimension of 1 is taken for a constant when a graph is traced


@dataclass(frozen=True, slots=True, eq=False)  # tensors do not compare
class Made:
    """One batch: keyword tensors of `forward`, on the CPU."""

    role: str  # "traced", "held out", "user"
    about: str  # what it tests
    tensors: Mapping[str, Tensor]


def batches_for(  # the last three replace what the config says
    model: torch.nn.Module | type[torch.nn.Module],
    config: Any,
    *,
    dynamic: Dynamic = Dynamic(),  # noqa: B008  # frozen
    seed: int = 0,
    vocabulary: int | None = None,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> list[Made]:
    """Return random batches for a model of transformers: the traced one first, then those that are held out.

    The held-out ones are to reach other branches: their values are shifted to either side, their masks pad rows to
    different lengths and to one token, one of them repeats an id so that other experts are used, and the ends of every
    range in `dynamic` occur. Without a range the shapes are those of the traced batch.

    Args:
        model: A model, or its class. Nothing is run.
        config: Its config.
        dynamic: Which dimensions may vary. One that goes with a declared one follows it: `attention_mask` follows
            `input_ids`, `pixel_mask` follows `pixel_values`.
        seed: The same seed gives the same numbers.
        vocabulary: How many ids there are to draw from; by default what the config says.
        sizes: Of the traced batch, in place of those of the config, by name: "batch", "length", "decoder_length",
            "height", "width", "samples".

    Raises:
        NotOptimizableError: If it takes inputs that cannot be made, or a range is declared for what is not its input.
    """
    planned = slots_for(model, config, vocabulary)
    slots = list(planned.slots)
    ranges = _ranges(slots, dynamic)
    multiples = {"height": planned.patch[0], "width": planned.patch[1]}
    traced = {"batch": _BATCH, **planned.sizes, **sizes}
    for name, ends in ranges.items():
        low, high = ranges[name] = _on_multiples(ends, multiples.get(name, 1))
        traced[name] = min(max(traced[name], low), high)
    about = f"random, {', '.join(planned.notes)}" if planned.notes else "random"
    first = Made("traced", about, draw(slots, traced, PLAIN, seed))
    return [first, *_held_out(slots, traced, ranges, seed)]


def batches_of(batch: Mapping[str, Tensor] | Path, *, dynamic: Dynamic = Dynamic(), seed: int = 0) -> list[Made]:  # noqa: B008  # frozen
    """Return `batch` (tensors, or a safetensors file) as the traced one, and held-out ones that are made from it.

    Raises:
        NotOptimizableError: If the file cannot be read, or the sizes of the batch are not in the ranges of `dynamic`.
    """
    about = "the user's" if not isinstance(batch, Path) else batch.name
    inputs = read_inputs(batch) if isinstance(batch, Path) else batch
    return [Made("traced", about, dict(inputs)), *held_out_of(inputs, dynamic, seed)]


def held_out_of(inputs: Mapping[str, Tensor], dynamic: Dynamic, seed: int = 0) -> list[Made]:
    """Return batches that differ from `inputs` in values, masks and, inside of the ranges of `dynamic`, in sizes.

    Nothing is known of the model, so every value stays in the range that it has in `inputs`. Floats are drawn from the
    values there, shifted to either side and mirrored. Integers of up to two dimensions are drawn between the smallest
    and the largest; of those with more dimensions, whole rows of the last one are drawn. An input that is called a mask
    and holds zeros and ones hides the ends of rows; one that holds only zeros gets a one in every row.

    Raises:
        NotOptimizableError: If `inputs` are outside of the ranges, or a range is declared for no input of theirs.
    """
    if not inputs:
        raise NotOptimizableError("there is no input", OWN_INPUTS)
    dynamic = complete(dynamic, inputs)
    symbols = _symbols(inputs, dynamic)
    slots = [_slot_of(name, one, symbols[name]) for name, one in inputs.items()]
    ranges = _ranges(slots, dynamic)
    sizes: dict[str, int] = {}
    for slot, tensor in zip(slots, inputs.values(), strict=True):
        for dim, size in zip(slot.dims, tensor.shape, strict=True):
            if isinstance(dim, str):
                low, high = ranges[dim]
                if not low <= size <= high or sizes.setdefault(dim, size) != size:
                    problem = f"{slot.name} has size {size} where its range, or that of all inputs, is {low}..{high}"
                    raise NotOptimizableError(
                        f"{problem}, with {sizes.get(dim, size)} in others", "change the range, or the inputs"
                    )
    return list(_held_out(slots, sizes, ranges, seed))


def complete(dynamic: Dynamic, inputs: Mapping[str, Tensor]) -> Dynamic:
    """Return `dynamic` with the further dimensions that must be equal to those in it, by names and sizes of one batch.

    Dimension 1 of ids, types and masks goes with that of other ids of the same length, unless it has a range of its
    own; the height and width of `pixel_mask` go with those of `pixel_values`.
    """
    dims = {name: dict(by_dim) for name, by_dim in dynamic.dims.items()}
    of_length: dict[tuple[bool, int], Range] = {}
    for name, tensor in inputs.items():
        if _is_row_of_ids(tensor) and 1 in dims.get(name, {}):
            of_length[name.startswith("decoder_"), tensor.shape[1]] = dims[name][1]
    for name, tensor in inputs.items():
        follows = of_length.get((name.startswith("decoder_"), tensor.shape[1])) if _is_row_of_ids(tensor) else None
        if follows:
            dims.setdefault(name, {}).setdefault(1, follows)
    if "pixel_mask" in inputs and "pixel_values" in dims:
        pixels = inputs["pixel_values"].dim() if "pixel_values" in inputs else 0
        for dim, ends in dims["pixel_values"].items():
            if pixels - dim in (1, 2):
                dims.setdefault("pixel_mask", {}).setdefault(inputs["pixel_mask"].dim() - pixels + dim, ends)
    return replace(dynamic, dims=dims)


def read_inputs(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        NotOptimizableError: If it is no such file, or is empty.
    """
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as exc:
        raise NotOptimizableError(f"{file} is no readable safetensors file ({exc})", OWN_INPUTS) from exc
    if not tensors:
        raise NotOptimizableError(f"{file} holds no tensor", OWN_INPUTS)
    return tensors


def _held_out(slots: list[Slot], traced: Mapping[str, int], ranges: Mapping[str, Range], seed: int) -> Iterator[Made]:
    yield Made("held out", "other values", draw(slots, traced, PLAIN, seed + 1))
    number = seed + 2
    for variation in VARIATIONS:
        if about := variation.about(slots):
            yield Made("held out", about, draw(slots, traced, variation, number))
            number += 1
    for name, sizes in _ends(traced, ranges).items():
        about = f"{name}: {', '.join(f'{one} {size}' for one, size in sizes.items() if one in ranges)}"
        yield Made("held out", about, draw(slots, sizes, PLAIN, number))
        number += 1


def _ends(traced: Mapping[str, int], ranges: Mapping[str, Range]) -> dict[str, dict[str, int]]:
    """Return sizes at the ends of the ranges, by name; each once, and never those of the traced batch."""
    corners = {
        "smallest": {**traced, **{name: low for name, (low, _) in ranges.items()}},
        "largest": {**traced, **{name: high for name, (_, high) in ranges.items()}},
    }
    others = [name for name in ranges if name != "batch"]
    if len(others) > 1:  # a form that mixes up height and width is right on every square
        corners["crossed"] = {**traced, **{name: ranges[name][number % 2] for number, name in enumerate(others)}}
    different: dict[str, dict[str, int]] = {}
    for name, sizes in corners.items():
        if sizes != dict(traced) and sizes not in different.values():
            different[name] = sizes
    return different


def _ranges(slots: list[Slot], dynamic: Dynamic) -> dict[str, Range]:
    """Return the range of every dimension that has one, by its name."""
    by_name = {slot.name: slot for slot in slots}
    if unknown := dynamic.dims.keys() - by_name.keys():
        raise NotOptimizableError(
            f"a range is declared for {', '.join(sorted(unknown))}, and the inputs are {', '.join(by_name)}",
            "name one of these, or pass inputs=... with the tensor in it",
        )
    common: dict[str, Range] = {}
    for slot in slots:
        for dim, (low, high) in dynamic.of(slot.name).items():
            symbol = slot.dims[dim] if -len(slot.dims) <= dim < len(slot.dims) else None
            if symbol is None and dim == 0:
                continue  # a single number has no batch
            if not isinstance(symbol, str):
                what = "has no such dimension" if symbol is None else f"has the fixed size {symbol}"
                raise NotOptimizableError(
                    f"a range is declared for dimension {dim} of {slot.name}, which {what}", "leave it out"
                )
            before = common.get(symbol, (low, high))
            low, high = common[symbol] = max(low, before[0]), min(high, before[1])
            if low > high or low < 1:
                raise NotOptimizableError(
                    f"the ranges of {symbol} ({before[0]}..{before[1]}, and that of {slot.name}) have no size in common",
                    "declare one range for all inputs that it is shared by, from 1 on",
                )
    return common


def _on_multiples(ends: Range, step: int) -> Range:
    """Return the range from the first to the last multiple of `step` in it; unchanged where there is none."""
    low, high = -(-ends[0] // step) * step, ends[1] // step * step
    return (low, high) if low <= high else ends


def _symbols(inputs: Mapping[str, Tensor], dynamic: Dynamic) -> dict[str, tuple[str | int, ...]]:
    """Return the dims of each input: dimensions of the same range and the same size have one name."""
    dims_of: dict[str, tuple[str | int, ...]] = {}
    for name, tensor in inputs.items():
        ranges = dynamic.of(name)
        dims: list[str | int] = []
        for dim, size in enumerate(tensor.shape):
            if dim not in ranges:
                dims.append(size)
            elif dim == 0 and dynamic.batch:
                dims.append("batch")
            else:
                low, high = ranges[dim]
                symbol = f"{size} in {low}..{high}"
                dims.append(symbol if symbol not in dims else f"{symbol} in dimension {dim}")
        dims_of[name] = tuple(dims)
    return dims_of


def _slot_of(name: str, tensor: Tensor, dims: tuple[str | int, ...]) -> Slot:
    integers = not tensor.is_floating_point() and not tensor.is_complex()
    bounds = (int(tensor.min()), int(tensor.max())) if integers and tensor.numel() and tensor.dim() else (0, 0)
    return Slot(name, _kind_of(name, tensor), dims, tensor.dtype, low=bounds[0], high=bounds[1], example=tensor)


def _kind_of(name: str, tensor: Tensor) -> InputKind:
    if not tensor.dim() or tensor.is_complex():
        return InputKind.FIXED
    if tensor.dtype is torch.bool or name.endswith("mask"):
        if not bool(((tensor == 0) | (tensor == 1)).all()):
            return InputKind.FIXED  # numbers that are added to scores, or something else
        return (
            InputKind.FLAGS
            if tensor.dim() > 1 and not bool(tensor.any())
            else InputKind.MASK
            if tensor.dim() > 1
            else InputKind.FIXED
        )
    if tensor.is_floating_point():
        return InputKind.VALUES
    return InputKind.IDS if tensor.dim() < 3 else InputKind.ROWS


def _is_row_of_ids(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point()
