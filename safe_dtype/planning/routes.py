"""How the products of a candidate are computed, by their number of rows: chosen from the measured rates."""

from __future__ import annotations

from dataclasses import dataclass

from ..dtypes import FLOAT32, Dtype
from ..facts import DeviceFacts, Verdict

# The rows that are measured. From one to the next the better kernel changes somewhere in between.
_MEASURED_ROWS = (1, 16, 512)
# Rows up to which the kernels for one row are asked for: prompts of a batch have more, beams and candidates fewer.
_FEW, _SOME = 8, 90  # the latter is the geometric mean of 16 and 512

# A layout costs time on loading, so it has to win by a tenth.
LAYOUT_GAIN = 1.10


@dataclass(frozen=True, slots=True)
class Routes:
    """The kernels of a candidate, and what they take.

    `layout` is "plain", or "blocks": linear weights copied into the layout of `safe_dtype.numerics.blocks`, from where
    products of many rows are computed in `wide`.
    `cast_from` is the number of rows from which other products are computed in the compute dtype; None is never.
    """

    layout: str
    cast_from: int | None
    seconds_per_element: tuple[float, float, float]  # of a weight, at 1, 16 and 512 rows
    wide: Dtype | None = None

    def seconds(self, rows: int) -> float:
        """Return the seconds for one weight element and `rows` rows, between the measured ones in proportion."""
        lower, upper = (0, 1) if rows <= _MEASURED_ROWS[1] else (1, 2)
        start, stop = _MEASURED_ROWS[lower], _MEASURED_ROWS[upper]
        first, last = self.seconds_per_element[lower], self.seconds_per_element[upper]
        if rows >= stop:
            return last * rows / stop
        return first + (last - first) * (rows - start) / (stop - start)


def routes_for(storage: Dtype, compute: Dtype, device: DeviceFacts, *, blocks: bool) -> Routes | None:
    """Return the fastest routes; None where nothing was measured. `blocks` tells whether that layout can be made."""
    plain = _plain_routes(storage, compute, device) if storage != FLOAT32 or compute == FLOAT32 else None
    laid_out = _block_routes(storage, compute, device, plain) if blocks else None
    if plain is None or laid_out is None:
        return laid_out or plain
    # Decided where it matters most: one row, for which every weight is read.
    return laid_out if plain.seconds(1) >= laid_out.seconds(1) * LAYOUT_GAIN else plain


def kernels_of(storage: Dtype, compute: Dtype) -> tuple[str, ...]:
    """Return the verdicts' names of the kernels that compute a plain product, where any of them will do."""
    if storage == FLOAT32:
        return ("matmul",)  # casting whole weights at every call pays for nobody: only blocks do
    return ("matmul",) if storage == compute else ("matmul", "matmul_cast")


def _plain_routes(storage: Dtype, compute: Dtype, device: DeviceFacts) -> Routes | None:
    verdicts = [device.verdict(storage, op) for op in kernels_of(storage, compute)]
    fastest = [_fastest(verdicts, rows) for rows in _MEASURED_ROWS]
    if any(one is None for one in fastest):
        return None
    seconds = tuple(one[0] for one in fastest if one is not None)
    thresholds = (1, _FEW + 1, _SOME)
    cast_from = next(
        (rows for rows, one in zip(thresholds, fastest, strict=True) if one is not None and one[1] == "matmul_cast"),
        None,
    )
    return Routes("plain", cast_from, (seconds[0], seconds[1], seconds[2]))


def _block_routes(storage: Dtype, compute: Dtype, device: DeviceFacts, plain: Routes | None) -> Routes | None:
    held = compute if storage == FLOAT32 else storage  # what the blocks are in
    if held == FLOAT32:
        return None
    ways = {FLOAT32: device.verdict(held, "matmul_blocks_cast"), held: device.verdict(held, "matmul_blocks")}
    if storage != FLOAT32:
        ways = {compute: ways[compute]}
    # One row takes the same kernel whatever many rows are computed in.
    found = {wide: [_seconds(one, rows) for rows in _MEASURED_ROWS] for wide, one in ways.items() if one.runs}
    whole = {wide: (a, b, c) for wide, (a, b, c) in found.items() if a is not None and b is not None and c is not None}
    if not whole:
        return None
    wide = min(whole, key=lambda one: whole[one][-1])
    return Routes("blocks", plain.cast_from if plain else None, whole[wide], wide)


def _fastest(verdicts: list[Verdict], rows: int) -> tuple[float, str] | None:
    found = [(seconds, one.op) for one in verdicts if one.runs and (seconds := _seconds(one, rows)) is not None]
    return min(found, default=None)


def _seconds(verdict: Verdict, rows: int) -> float | None:
    """Return the seconds for one element of a weight at a measured number of rows."""
    read, work = verdict.decode_bytes_per_s, verdict.prefill_flops_per_s
    if not read or not work:
        return None
    one, many = verdict.dtype.itemsize / read, 2 * rows / work
    if rows == 1:
        return one
    timed = [one for one in verdict.timings if one.rows == rows]
    elements = sum(one.shape[0] * one.shape[1] for one in timed)
    if rows == _MEASURED_ROWS[-1] or not elements:
        return max(one, many)
    return sum(one.seconds for one in timed) / elements
