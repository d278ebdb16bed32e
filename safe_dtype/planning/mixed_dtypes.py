"""Which tensors of a checkpoint a dtype does not hold: files mix formats, as float32 norms among bfloat16 weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UnknownDtypeError
from ..facts import FLOAT16, CheckpointFacts, Dtype, TensorFacts, dtype_named
from ..rendering.units import bytes_text

_BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}  # per number; all others take 8 or fewer
_NAMED = 3  # how many kinds of tensors a text names


@dataclass(frozen=True, slots=True)
class RoundedTensors:
    """The tensors that lose bits when a checkpoint is loaded in one dtype."""

    tensors: int
    all_tensors: int
    bytes: int  # as they are saved
    share: float  # of all floating-point numbers those that are saved with more significant bits than they keep
    dtypes: tuple[str, ...]  # that they are saved in
    kinds: tuple[str, ...]  # their names, each number in them a star

    def __str__(self) -> str:
        dtypes = " and ".join(self.dtypes)
        return f"{self.tensors} of {self.all_tensors} tensors ({bytes_text(self.bytes)} in {dtypes})"

    @property
    def names(self) -> str:
        """The first kinds, as a text."""
        more = len(self.kinds) - _NAMED
        return ", ".join(self.kinds[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def rounded_tensors(storage: Dtype, checkpoint: CheckpointFacts) -> RoundedTensors | None:
    """Return what of `checkpoint` loses bits in `storage`; None where it keeps every bit.

    What stays in float32 is not among it: by the lists of the architecture's class, or for its range.
    """
    floating = [tensor for tensor in checkpoint.tensors if "float" in tensor.dtype]
    is_held = {dtype: holds(storage, dtype) for dtype in {tensor.dtype for tensor in floating}}
    rounded = [
        tensor
        for tensor in floating
        if not (is_held[tensor.dtype] or is_kept(tensor, storage, checkpoint) or is_out_of_range(tensor, storage))
    ]
    if not rounded:
        return None
    return RoundedTensors(
        tensors=len(rounded),
        all_tensors=len(checkpoint.tensors),
        bytes=sum(one.numel * _BITS.get(one.dtype, 8) // 8 for one in rounded),
        share=sum(one.numel for one in rounded if _is_finer(one.dtype, storage))
        / max(1, sum(one.numel for one in floating)),
        dtypes=tuple(dict.fromkeys(one.dtype for one in rounded)),
        kinds=tuple(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", one.name) for one in rounded)),
    )


def out_of_range(storage: Dtype, checkpoint: CheckpointFacts) -> tuple[TensorFacts, ...]:
    """Return the tensors whose numbers `storage` does not reach, as far as anybody has looked at their values."""
    wide = (tensor for tensor in checkpoint.tensors if is_out_of_range(tensor, storage))
    return tuple(tensor for tensor in wide if not is_kept(tensor, storage, checkpoint))


def is_out_of_range(tensor: TensorFacts, storage: Dtype) -> bool:
    """Whether the tensor's numbers are known to become infinite in `storage`, or to lose themselves below its range."""
    largest = tensor.largest
    return bool(largest) and (largest > storage.largest or largest < storage.smallest_normal)  # type: ignore[operator]


def is_kept(tensor: TensorFacts, storage: Dtype, checkpoint: CheckpointFacts) -> bool:
    """Whether transformers keeps the tensor in float32 when it loads the rest in `storage`."""
    if storage.itemsize != 2:
        return False
    patterns = checkpoint.keep_in_fp32_strict + (checkpoint.keep_in_fp32 if storage == FLOAT16 else ())
    # Unanchored, as transformers matches them; most architectures have none.
    return bool(patterns) and any(re.search(pattern, tensor.name) for pattern in patterns)


def _is_finer(saved: str, storage: Dtype) -> bool:
    try:
        return dtype_named(saved).epsilon < storage.epsilon
    except UnknownDtypeError:
        return not saved.startswith("float8")


def holds(storage: Dtype, saved: str) -> bool:
    """Whether `storage` holds every number of a format, by torch's name of it."""
    try:
        return storage.holds(dtype_named(saved))
    except UnknownDtypeError:  # float64, and forms of float8 that nobody computes in
        return saved.startswith("float8") and storage.itemsize > 1
