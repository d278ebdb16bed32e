"""Can the weights of a checkpoint be held in float16? Reads every number of it, and nothing of it stays in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...facts import FLOAT16, TensorFacts, Where
from ..config import read_config
from ..model_files import Files, LocalFiles, files_of
from ..weights import read_tensors, weight_names
from .census import SMALLEST_NORMAL, Census
from .pieces import PIECE_BYTES, count_piece, pieces_of, spans_of

ROOM_SHARE = 0.001  # of a tensor's elements: how many may lose bits where the audit says how far it can be scaled down

_MOST_THREADS = 8  # by then memory, not arithmetic, sets the pace


@dataclass(frozen=True, slots=True)
class TensorAudit:
    """One tensor, and what float16 would make of it."""

    tensor: TensorFacts
    census: Census

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, the census and the room to scale as plain values."""
        return {
            "name": self.tensor.name, "dtype": self.tensor.dtype, "shape": list(self.tensor.shape),
            "file": self.tensor.file, **_census_to_dict(self.census),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors that have one place in their layers: their names are the same but for the numbers in them."""

    pattern: str  # "model.layers.*.mlp.up_proj.weight"
    tensors: tuple[TensorAudit, ...]

    @property
    def census(self) -> Census:
        """What float16 would make of all of them."""
        return _total(self.tensors)


@dataclass(frozen=True)
class Audit:
    """What float16 would make of the weights of one checkpoint."""

    source: str
    tensors: tuple[TensorAudit, ...]  # in the order of the files
    left_alone: tuple[TensorFacts, ...]  # not in one of the formats that models compute in: integers, float8, ...

    @cached_property
    def total(self) -> Census:
        """The census of all weights."""
        return _total(self.tensors)

    @property
    def fits(self) -> bool:
        """Whether no weight overflows in float16."""
        return self.total.fits

    @property
    def overflowing(self) -> tuple[TensorAudit, ...]:
        """The tensors that hold a weight too large for float16, the largest first."""
        too_large = (one for one in self.tensors if not one.census.fits)
        return tuple(sorted(too_large, key=lambda one: -one.census.largest))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The tensors by their place in their layers, in the order of the files."""
        members: dict[str, list[TensorAudit]] = {}
        for audited in self.tensors:
            members.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", audited.tensor.name), []).append(audited)
        return tuple(Group(pattern, tuple(tensors)) for pattern, tensors in members.items())

    @property
    def verdict(self) -> str:
        """One sentence: whether the weights fit, and what becomes of those that do not keep their value."""
        total = self.total
        if not self.tensors:
            return "there are no weights to judge: no tensor is in a floating-point format of 16 bits or more"
        changed = (
            f"{total.inexact:,} of {total.elements:,} are inexact ({total.inexact_share:.3g}), "
            f"{total.vanishing:,} of them vanish"
            if total.inexact
            else f"all {total.elements:,} keep their value"
        )
        broken = total.infinite + total.nan
        already = f"; {broken:,} are infinite or NaN already" if broken else ""
        if total.fits:
            return f"every weight fits float16; {changed}{already}"
        return (
            f"{total.overflowing:,} weights in {len(self.overflowing)} of {len(self.tensors)} tensors overflow float16: "
            f"they reach {total.largest:.6g}, and it ends at {FLOAT16.largest:.0f}; {changed}{already}"
        )

    def _repr_html_(self) -> str:
        from .audit_page import audit_html  # which is about this noun

        return audit_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain values."""
        return {
            "source": self.source,
            "fits": self.fits,
            "verdict": self.verdict,
            "room_share": ROOM_SHARE,
            "total": _census_to_dict(self.total),
            "tensors": [one.to_dict() for one in self.tensors],
            "left_alone": [
                {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "file": tensor.file}
                for tensor in self.left_alone
            ],
        }


def audit(
    where: Where | str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Audit:
    """Read every weight of a safetensors checkpoint and return what float16 would make of it.

    Memory stays flat: each thread holds 16 MiB of a file at a time. Shards of a repository on the Hub that are not in
    the cache are downloaded into it.

    Args:
        where: A folder, a file or a repository on the Hub.
        progress: Called in the calling thread with the bytes read so far, and the bytes in all.
        threads: How many read at a time; None: one for each of this process's processors, up to 8.
        piece_bytes: What a thread reads before it takes the next piece.

    Raises:
        CheckpointError: If it is pickled or GGUF, or a file cannot be read.
        CheckpointNotFoundError: If there is nothing of that name, or no weights in it.
        GatedCheckpointError: If the Hub wants a login or access to be granted.
        MissingShardError: If the index names files that are not there.
        CorruptCheckpointError: If a file is truncated or contradicts itself.
    """
    from .counting import LAYOUTS  # loads numpy: not for `safe-dtype --help`

    where = where if isinstance(where, Where) else Where(where)
    spans = [span for path in _paths(where) for span in spans_of(path)]
    judged = [span for span in spans if span.tensor.dtype in LAYOUTS]
    censuses = [Census(LAYOUTS[span.tensor.dtype].floor) for span in judged]
    done, total = 0, sum(span.size for span in judged)
    with ThreadPoolExecutor(threads or _default_threads()) as pool:
        pieces = {pool.submit(count_piece, where.name, piece): piece for piece in pieces_of(judged, piece_bytes)}
        try:
            for finished in as_completed(pieces):
                for (place, span), census in zip(pieces[finished], finished.result(), strict=True):
                    censuses[place] += census
                    done += span.size
                if progress:
                    progress(done, total)
        except BaseException:  # interrupted, as a rule: the rest need not be read
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Audit(
        where.name,
        tuple(TensorAudit(span.tensor, census) for span, census in zip(judged, censuses, strict=True)),
        tuple(span.tensor for span in spans if span.tensor.dtype not in LAYOUTS),
    )


def _paths(where: Where) -> list[Path]:
    """Return the safetensors files that transformers would load, on this machine."""
    path = Path(where.source)
    if path.is_file():
        files: Files = LocalFiles(path.parent)
        name, is_index = path.name, path.name.endswith(".index.json")
    else:
        files = files_of(where)
        name, is_index = weight_names(where, files, _explicit(where, files))
    if ".safetensors" not in name or where.gguf_file:
        problem = f"{where.gguf_file or name} is no safetensors file, and only those are audited"
        raise CheckpointError(where.name, problem, "save the model with `save_pretrained` first, and audit that")
    tensors = read_tensors(where, files, name, is_index=is_index)
    return [files.local(file) for file in dict.fromkeys(tensor.file for tensor in tensors)]


def _explicit(where: Where, files: Files) -> str | None:
    if files.has("adapter_config.json") and not files.has("config.json"):
        return "adapter_model.safetensors"
    name: str | None = read_config(where, files).get("transformers_weights")
    return name


def _default_threads() -> int:
    # Fewer than os.cpu_count() in a container, or under taskset; not every system tells.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _MOST_THREADS)


def _total(tensors: Iterable[TensorAudit]) -> Census:
    total: Census | None = None
    for audited in tensors:
        total = total + audited.census if total else audited.census
    return total or Census(SMALLEST_NORMAL)


def _census_to_dict(census: Census) -> dict[str, Any]:
    return {**census.to_dict(), "bits_up": census.bits_up, "bits_down": census.bits_down(ROOM_SHARE)}
