"""The weights of a model as its files hold them, before they were rounded: read one at a time, and proven."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.stored_tensors import StoredTensors
from ..errors import CheckpointError, UnknownDtypeError
from ..facts import Rows, TensorFacts, dtype_named
from .origin import Origin, own_origin
from .stored_names import FAULTS, Conversion, Source, plain_name, sources_of

logger = logging.getLogger(__name__)

Exponents = Mapping[Rows | None, int]  # of a rescale: by which power of two rows of a parameter are multiplied

_AT_ONCE = 2**24  # numbers compared at a time, so that no copy of a whole weight is made
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class OriginalWeights:
    """The weights of `model` as they are in the files that it was loaded from.

    Use it as a context: files are opened with the first tensor, and closed at the end. Nothing is believed of a file
    that is not the very one of the time of loading, by its absolute path, inode, size and times, and no model is built.
    No fault of a file is raised: there is no tensor then, and `problems` says why. At most one tensor is in memory.

        with OriginalWeights(model) as original:
            stored = original.unchanged(name, parameter.data)

    Names are those of `model.named_parameters()` or `named_buffers()`, also of modules that PEFT has wrapped since, of
    tied weights, and of what transformers renames, splits or merges on loading.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = [
            _Part(prefix, module, origin)
            for prefix, module in model.named_modules()
            if (origin := own_origin(module)) is not None
        ]
        self.unmade: set[str] = set()  # names that `unchanged` found nothing for to compare with
        self._parts.sort(key=lambda part: -len(part.prefix))  # the innermost first

    def __enter__(self) -> OriginalWeights:
        return self

    def __exit__(self, *_exc: object) -> None:
        for part in self._parts:
            part.close()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why files cannot be believed; empty where nothing is wrong, or nothing was read yet."""
        return tuple(dict.fromkeys(part.problem for part in self._parts if part.problem))

    def loses(self, name: str, dtype: torch.dtype) -> bool:
        """Whether what the files had for this parameter is rounded in `dtype`. Reads nothing but headers."""
        return any(part.loses(own, dtype) for part, own in self._parts_of(name))

    def dtype_of(self, name: str) -> torch.dtype | None:
        """Return the dtype that the files hold this parameter in; None where they are not known to. Reads no tensor."""
        for part, own in self._parts_of(name):
            return next((dtype for source in part.sources(own) if (dtype := part.dtype_of(source)) is not None), None)
        return None

    def tensor(self, name: str) -> Tensor | None:
        """Return what the files hold for this parameter, in the dtype of the file, on the CPU, in memory of its own.

        It is what was loaded, whatever has become of the parameter since. Of several that it may be made from (tied
        weights that are stored twice) it is the likeliest. None where there is none.
        """
        return next((stored for part, own in self._parts_of(name) for stored in part.tensors(own)), None)

    def unchanged(self, name: str, present: Tensor, exponents: Exponents | None = None) -> Tensor | None:
        """Return `tensor(name)` where `present` is what became of it, bit for bit; None where it was changed since.

        Args:
            name: Of the parameter.
            present: Its values now. Where they are spread over ranks, what is returned is spread as they are, and
                compared on this rank alone.
            exponents: The powers of two that it was multiplied by since it was loaded: of these rows, or as a whole.
                What is returned is not multiplied.
        """
        candidates = 0
        is_spread = _is_spread(present) and not exponents  # a power of two may be that of rows of another rank
        if not present.is_meta and (type(present.data) in (Tensor, nn.Parameter) or is_spread):
            here = _part_of_this_rank(present)
            for part, own in self._parts_of(name):
                for candidates, stored in enumerate(part.tensors(own), 1):  # noqa: B007  (how many there were)
                    if stored.shape != present.shape:
                        continue
                    whole = _spread_as(present, stored) if is_spread else stored
                    if _became(_part_of_this_rank(whole), here, exponents or {}, part.passed):
                        return whole
        if not candidates:
            self.unmade.add(name)
        return None

    def _parts_of(self, name: str) -> Iterator[tuple[_Part, str]]:
        for part in self._parts:
            if name.startswith(part.prefix):
                yield part, plain_name(name.removeprefix(part.prefix))
                return


class _Part:
    """A model that safe_dtype loaded, which may be a part of another one."""

    def __init__(self, path: str, model: nn.Module, origin: Origin) -> None:
        self.prefix = f"{path}." if path else ""
        self.problem = origin.files.problem
        plan = origin.plan
        # What weights may have been in between file and now: the dtype that was saved, and the one that was planned.
        self.passed = tuple(dict.fromkeys(getattr(torch, dtype.name) for dtype in (plan.saved, plan.storage)))
        self._model = model
        self._origin = origin
        self._facts: dict[str, TensorFacts] = {one.name: one for one in origin.files.tensors}
        self._sources: dict[str, list[Source]] | None = None
        self._stored: StoredTensors | None = None
        self._converted: tuple[Conversion, dict[str, Tensor]] | None = None

    def sources(self, name: str) -> list[Source]:
        """Return what a parameter may be made from."""
        if self._sources is None:
            if not self._facts:  # headers of pickles are not kept
                self._open()
            self._sources = sources_of(self._model, self._facts, self._origin.arguments.get("key_mapping"))
        return self._sources.get(name, [])

    def loses(self, name: str, dtype: torch.dtype) -> bool:
        """Whether `dtype` does not hold all that a parameter is made from."""
        dtypes = {one.dtype for one in self._facts.values()}
        if dtypes and all(_holds(dtype, stored) for stored in dtypes):
            return False  # whatever is stored under which name
        names = {stored for source in self.sources(name) for stored in source.names}
        if not self._facts:  # nobody knows what each was: what most were decides
            return not _holds(dtype, self._origin.plan.saved.name)
        return any(not _holds(dtype, self._facts[stored].dtype) for stored in names)

    def dtype_of(self, source: Source) -> torch.dtype | None:
        """Return the dtype of the first tensor that it names."""
        facts = self._facts.get(source.names[0])
        dtype = getattr(torch, facts.dtype, None) if facts is not None else None
        return dtype if isinstance(dtype, torch.dtype) else None

    def tensors(self, name: str) -> Iterator[Tensor]:
        """Yield what a parameter may have been, from the files; nothing more once they cannot be believed."""
        for source in self.sources(name):
            if not self._open():
                return
            try:
                tensor = self._made(source)
            except FAULTS as exc:
                if isinstance(exc, CheckpointError):
                    self._give_up(exc.problem)
                    return
                logger.debug("%s cannot be made anew from its files: %r", name, exc)
                continue
            if tensor is not None:
                # A part of what a converter splits would keep the whole in memory.
                yield tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

    def close(self) -> None:
        """Close the files."""
        self._converted = None
        if self._stored is not None:
            self._stored.close()
            self._stored = None

    def _open(self) -> bool:
        if self.problem:
            return False
        if self._stored is None:
            try:
                self._stored = StoredTensors(self._origin.files)
            except CheckpointError as exc:
                self._give_up(exc.problem)
                return False
            self._facts = self._stored.tensors
        return True

    def _give_up(self, problem: str) -> None:
        self.close()
        self.problem = problem

    def _made(self, source: Source) -> Tensor | None:
        files = self._stored
        if files is None:
            return None
        if source.conversion is None:
            return files.read(source.names[0])
        if self._converted is None or self._converted[0] is not source.conversion:
            self._converted = None  # the next one needs the room
            self._converted = source.conversion, source.conversion.convert(self._model, files.read)
        return self._converted[1].get(source.target)


def _is_spread(tensor: Tensor) -> bool:
    """Whether this is a DTensor, of which each rank holds a part."""
    return hasattr(tensor, "_local_tensor")


def _part_of_this_rank(tensor: Tensor) -> Tensor:
    return getattr(tensor, "_local_tensor", tensor)


def _spread_as(present: Any, whole: Tensor) -> Tensor:
    """Return `whole`, which every rank has, as a tensor that is spread like `present`. Nothing is sent."""
    from torch.distributed.tensor import distribute_tensor  # which is there: `present` is of it

    return distribute_tensor(whole, present.device_mesh, present.placements, src_data_rank=None)


def _holds(dtype: torch.dtype, stored: str) -> bool:
    if "float" not in stored:  # codes and indices, which are not cast
        return True
    try:
        return dtype_named(str(dtype)).holds(dtype_named(stored))
    except UnknownDtypeError:
        return str(dtype).removeprefix("torch.") == stored


def _became(stored: Tensor, present: Tensor, exponents: Exponents, passed: tuple[torch.dtype, ...]) -> bool:
    """Whether `stored`, multiplied and cast as on loading, has the bits of `present`."""
    ways: tuple[Any, ...] = (*(() if exponents else (stored.dtype,)), torch.float32, *passed)
    return any(_has_bits(stored, present, exponents, way) for way in dict.fromkeys(ways))


def _has_bits(stored: Tensor, present: Tensor, exponents: Exponents, way: torch.dtype) -> bool:
    bits = _BITS[present.dtype.itemsize]
    by_rows = any(rows is not None for rows in exponents)
    length = present.shape[0] if present.dim() else 1
    step = length if by_rows or not present.dim() else max(1, _AT_ONCE * length // max(1, present.numel()))
    for start in range(0, length, max(1, step)):
        part = slice(start, start + step) if step < length else ...
        cast = _multiplied(stored[part].to(way), exponents).to(present.dtype)
        if not torch.equal(cast.view(bits), present[part].cpu().view(bits)):
            return False
    return True


def _multiplied(tensor: Tensor, exponents: Exponents) -> Tensor:
    """Return `tensor`, or its rows, times powers of two, in its own dtype; itself where there are none."""
    if not exponents:
        return tensor
    product = tensor.clone()
    for rows, exponent in exponents.items():
        index: list[slice] = [slice(None)] * tensor.dim()
        if rows is not None:
            index[rows.dim] = rows.of(tensor.shape[rows.dim])
        product[tuple(index)] *= math.ldexp(1.0, exponent)
    return product
