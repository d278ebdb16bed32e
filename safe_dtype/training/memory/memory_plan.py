"""How a training step is made to fit: what costs least time comes first, and the global batch stays what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from ...errors import TrainingDoesNotFitError
from ...facts import Dtype, MemoryFacts
from ...rendering.units import bytes_text
from .traced_step import Checkpointing

# Of what is free: allocators cut memory into pieces, and others use the machine too.
USABLE = 0.9


@dataclass(frozen=True, slots=True)
class TrainingWay:
    """One way to make a step on a global batch: rows in a micro-batch, how many of them, what is checkpointed."""

    rows: int  # of one micro-batch, on one device
    accumulation: int  # micro-batches in one step of the optimizer
    checkpointing: Checkpointing | None = None

    def __str__(self) -> str:
        batches = f"{self.accumulation} micro-batch{'es' * (self.accumulation > 1)} of {self.rows}"
        return batches if self.checkpointing is None else f"{batches}, {self.checkpointing}"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What was tried to make training in one dtype fit, and what fits."""

    dtype: Dtype
    free_bytes: int  # that may be used on the device; what the process holds of the model already is among them
    tried: tuple[tuple[TrainingWay, int], ...]  # each with the bytes that it needs, the one as it is ordered first
    kinds: tuple[
        tuple[tuple[str, int], ...], ...
    ] = ()  # of each that was tried, what it is made of, where that is known
    least_bytes: int = 0  # what the ordered one takes for sure, of tensors alone; 0: nobody knows
    present_bytes: int = 0  # what the process has of main memory and can get, to the last byte; 0: nobody knows

    @property
    def fits(self) -> bool:
        """Whether the last way that was tried fits."""
        return self.tried[-1][1] <= self.free_bytes

    @property
    def way(self) -> TrainingWay | None:
        """The way to go; None: nothing fits."""
        return self.tried[-1][0] if self.fits else None

    @property
    def is_as_ordered(self) -> bool:
        """Whether nothing has to be changed."""
        return self.fits and len(self.tried) == 1

    @property
    def cannot_be(self) -> bool:
        """Whether a step as it is ordered would have the system end the process, for sure."""
        return 0 < self.present_bytes < self.least_bytes

    def kinds_of_least(self, rows: int | None = None) -> tuple[tuple[str, int], ...]:
        """Return what the way is made of that needs least: weights, gradients, ...; of those with `rows`, where that is said."""
        pairs = zip(self.tried, self.kinds, strict=False)
        able = [(needed, kinds) for (way, needed), kinds in pairs if rows in (None, way.rows)]
        return min(able, default=(0, ()))[1]

    def __str__(self) -> str:
        ordered, needed = self.tried[0]
        text = (
            f"a step in {self.dtype} ({ordered}) needs {bytes_text(needed)}, {bytes_text(self.free_bytes)} may be used"
        )
        if self.is_as_ordered:
            return text
        if self.way is None:
            least, bytes_of_least = min(self.tried, key=lambda pair: pair[1])
            return f"{text}; and so does nothing that was tried: {least} needs {bytes_text(bytes_of_least)}"
        return f"{text}; {self.way} needs {bytes_text(self.tried[-1][1])}"

    def require(self, *, ranks: int = 1, devices: int = 1) -> TrainingWay:
        """Return the way to go.

        Args:
            ranks: Processes that train together: what FSDP2 could share the weights among.
            devices: Accelerators of this process, among which a `device_map` could spread the model.

        Raises:
            TrainingDoesNotFitError: If there is none; it has the bytes.
        """
        if (way := self.way) is not None:
            return way
        least = min(needed for _, needed in self.tried)
        kinds = self.kinds_of_least()
        raise TrainingDoesNotFitError(self.dtype.name, least, self.free_bytes, ranks, devices, kinds=kinds)


def plan_memory(  # noqa: PLR0913  (all but four by name)
    dtype: Dtype,
    ordered: TrainingWay,
    needs: Callable[[TrainingWay], int],
    memory: MemoryFacts,
    *,
    held_bytes: int = 0,
    offloads: bool = False,
    splits: bool = True,
    allowed_bytes: int | None = None,
) -> MemoryPlan:
    """Try one way after the other until one fits.

    Args:
        dtype: To train in.
        ordered: The way that the program asks for.
        needs: Returns the bytes that a way needs, all in all; ValueError: the model has no such checkpointing.
        memory: Of the device, now.
        held_bytes: Of what the process holds there already and needs anyway: weights, moments.
        offloads: Whether activations can be brought elsewhere: not on a CPU.
        splits: Whether a micro-batch may be made smaller.
        allowed_bytes: What the process may hold there, all in all; None: no more than the device sets a limit.
    """
    tried = [(ordered, needs(ordered))]
    free = int(memory.free_bytes * USABLE) + held_bytes
    if allowed_bytes is not None:
        free = min(free, allowed_bytes) if memory.total_bytes else allowed_bytes
    elif not memory.total_bytes:  # nobody knows
        free = max(free, tried[0][1])
    for way in _ways(ordered, offloads=offloads, splits=splits):
        if tried[-1][1] <= free:
            break
        plainly = replace(way, checkpointing=ordered.checkpointing)
        for possible in dict.fromkeys((way, plainly)):
            with suppress(ValueError):
                tried += [(possible, needs(possible))] if possible != ordered else []
                break
    return MemoryPlan(dtype, free, tuple(tried))


def _ways(ordered: TrainingWay, *, offloads: bool, splits: bool) -> Iterator[TrainingWay]:
    rows, accumulation, own_checkpointing = ordered.rows, ordered.accumulation, ordered.checkpointing
    whole = Checkpointing()
    if own_checkpointing is None:
        yield TrainingWay(rows, accumulation, Checkpointing(every=2))
    if own_checkpointing != whole and not (own_checkpointing is not None and own_checkpointing.offload):
        yield TrainingWay(rows, accumulation, whole)
    if offloads:
        yield TrainingWay(rows, accumulation, Checkpointing(offload=True))
    for parts in (parts for parts in range(2, rows + 1) if splits and rows % parts == 0):
        # Half, a quarter, ...: and one row at the end, whatever lies between.
        if parts & (parts - 1) == 0 or parts == rows:
            yield TrainingWay(rows // parts, accumulation * parts, own_checkpointing or whole)
