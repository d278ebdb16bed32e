"""How the products of a candidate are computed, by their number of rows: chosen from the measured rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..facts import CODES, FLOAT16, FLOAT32, INT4, INT8, DeviceFacts, Dtype, Verdict, VerdictKind, codes_of_head

# The rows that are measured, and those from which what was measured there is expected to hold: one row has kernels of
# its own, as have the few rows of beams and candidates; 90 is the geometric mean of 16 and 512.
_MEASURED_ROWS = (1, 16, 512)
_FROM_ROWS = (1, 9, 90)

# A layout costs time on loading, so it has to win by a tenth. Code for this CPU costs next to none, and a model gains more by
# it than its products alone: of one row, weights that multiply the same are read in one pass, and all layers are computed in
# one call (two cores with AVX512: 35 ms a token, and 60 by blocks whose products alone are as fast). For more rows it has to win.
_LAYOUT_GAIN, _LAYOUT_GAIN_OVER_COMPILED = 1.10, 1.30
_COMPILED_LOSS = 1.05
_COMPILED_GAIN = 1.05

# The product of few rows that is compiled, and the numbers of rows that it is measured at beside one.
_COMPILED, _COMPILED_ROWS = "matmul_rows", (8, 16)

# What another library than torch's own computes for float32 has to win by this, for times repeat no better.
_LIBRARY_GAIN = 1.05
_CHUNKS_GAIN = 1.10

# Layouts of float32 weights that are held in 16 bit: those whose numbers all are 16-bit numbers, and rounded ones.
NARROW, ROUNDED = "narrow", "rounded"

# Attention of a prompt that is computed chunk by chunk.
CHUNKS = "attention_chunks"

# What the name of a product by codes ends in whose many rows are computed in float32.
_CAST = "_cast"

Calls = tuple[tuple[int, int], ...]  # (rows, how often)


@dataclass(frozen=True, slots=True)
class Routes:
    """The kernels of a candidate, and what they take.

    `layout` is "plain", or "blocks": linear weights copied into the layout of `safe_dtype.numerics.block_product`; or "int8"
    or "int4": rounded to the codes of `safe_dtype.kernels.weights.coded_weight`; or "narrow" or "rounded": float32 weights in
    16 bit, of `safe_dtype.kernels.weights.narrow_weight`. From each, products of many rows are computed in `wide`.
    `cast_from` is the number of rows from which products of weights that lie plainly are computed in the compute dtype;
    None is never. Up to `compiled_rows` rows, such products take code that is compiled for this CPU, of
    `safe_dtype.kernels`. `in_8_bits` is what those weights take that stay in 8 bits where others have 4; None where that was
    not measured. With `onednn`, products from `cast_from` rows on are oneDNN's in float32, also where that is what
    the weights are in. With `chunks`, attention of a prompt is computed chunk by chunk.
    """

    layout: str
    cast_from: int | None
    seconds_per_element: tuple[float, float, float]  # of a weight, at 1, 16 and 512 rows
    wide: Dtype | None = None
    compiled_rows: int = 0
    onednn: bool = False
    chunks: bool = False
    in_8_bits: tuple[float, float, float] | None = None  # as `seconds_per_element`

    def seconds(self, rows: int, *, in_8_bits: bool = False) -> float:
        """Return the seconds for one weight element and `rows` rows, between the measured ones in proportion."""
        measured = (self.in_8_bits if in_8_bits else None) or self.seconds_per_element
        lower, upper = (0, 1) if rows <= _MEASURED_ROWS[1] else (1, 2)
        start, stop = _MEASURED_ROWS[lower], _MEASURED_ROWS[upper]
        first, last = measured[lower], measured[upper]
        if rows >= stop:
            return last * rows / stop
        return first + (last - first) * (rows - start) / (stop - start)


def routes_for(  # noqa: PLR0913  (flags of one kind, by name)
    storage: Dtype, compute: Dtype, device: DeviceFacts, calls: Calls, *, can_be_laid_out: bool,
    can_be_compiled: bool = False, has_experts: bool = False,
) -> Routes | None:  # fmt: skip
    """Return the fastest routes for `calls`; None where nothing was measured.

    `can_be_laid_out` tells whether the weights can be copied into another layout, `can_be_compiled` whether products may
    take code of our own, and `has_experts` whether some weights are no linear modules, which other libraries are not asked for.
    """
    plain = _plain_routes(storage, compute, device, calls, can_be_replaced=can_be_compiled and not has_experts)
    blocks = _block_routes(storage, compute, device, calls, plain) if can_be_laid_out else None
    if plain is not None and can_be_compiled:
        plain = with_compiled(plain, device.verdict(storage, _COMPILED))
    if plain is None or blocks is None:
        routes = blocks or plain
    else:
        gain = _LAYOUT_GAIN_OVER_COMPILED if plain.compiled_rows else _LAYOUT_GAIN
        routes = blocks if _total(plain, calls) >= _total(blocks, calls) * gain else plain
    if routes is not None and can_be_compiled and _chunks_win(storage, compute, device, routes):
        return replace(routes, chunks=True)
    return routes


def code_routes(storage: Dtype, compute: Dtype, codes: Dtype, device: DeviceFacts) -> Routes | None:
    """Return the routes of linear weights that are rounded to `codes`; None where nothing was measured."""
    per_element = _per_element(code_verdict(storage, compute, codes, device))
    plain = _routes_by(_other_kernel(storage, compute), storage, device)
    if per_element is None:
        return None
    wider = _per_element(code_verdict(storage, compute, INT8, device)) if codes == INT4 else None
    routes = Routes(codes.name, plain.cast_from if plain else None, per_element, compute, in_8_bits=wider)
    return replace(routes, chunks=_chunks_win(storage, compute, device, routes))


def narrow_routes(codes: Dtype, device: DeviceFacts, calls: Calls, *, is_exact: bool) -> Routes | None:
    """Return the routes of float32 weights that are held in the 16 bit of `codes`; None where nothing was measured.

    What is not laid out takes those of plain float32.
    """
    per_element = _per_element(device.verdict(FLOAT32, narrow_op(codes)))
    if per_element is None:
        return None
    plain = routes_for(FLOAT32, FLOAT32, device, calls, can_be_laid_out=False, can_be_compiled=True)
    plain = plain or Routes("plain", None, per_element)
    layout = NARROW if is_exact else ROUNDED
    # A mode around steps of few rows would cost more than what is not laid out gains by it.
    cast_from = None if plain.cast_from is None else max(plain.cast_from, _COMPILED_ROWS[-1] + 1)
    return replace(plain, layout=layout, cast_from=cast_from, seconds_per_element=per_element, wide=FLOAT32)


def narrow_op(codes: Dtype) -> str:
    """Return the product of float32 numbers by weights that are held in the 16 bit of `codes`."""
    return f"matmul_{codes}_rows"


def code_ops(storage: Dtype, codes: Dtype) -> tuple[str, ...]:
    """Return the products by codes that there are for activations in a dtype."""
    # Sums of codes leave float16's range.
    both = _code_op(codes), f"{_code_op(codes)}{_CAST}"
    return {FLOAT32: both[:1], FLOAT16: both[1:]}.get(storage, both)


def computed_by(op: str, storage: Dtype) -> Dtype:
    """Return what one of the `code_ops` computes many rows in."""
    return FLOAT32 if op.endswith(_CAST) else storage


def code_verdict(storage: Dtype, compute: Dtype, codes: Dtype, device: DeviceFacts) -> Verdict:
    """Return the verdict on products by codes, whose many rows are computed in `compute`.

    Where some weights stay in 8 bits, it is that on those where these cannot be.
    """
    cast = "" if storage == compute else _CAST
    own, of_some = (device.verdict(storage, f"{_code_op(one)}{cast}") for one in (codes, codes_of_head(codes)))
    return of_some if own.runs and not of_some.runs and of_some.kind is not VerdictKind.UNKNOWN else own


def _code_op(codes: Dtype) -> str:
    return f"matmul_{codes}"


def product_verdict(
    storage: Dtype, compute: Dtype, device: DeviceFacts, routes: Routes | None = None, codes: Dtype | None = None
) -> Verdict:
    """Return the verdict on the products of a candidate, as `routes` compute them where they are known."""
    if codes in CODES:
        return code_verdict(storage, compute, codes, device)
    if codes is not None:
        return device.verdict(storage, narrow_op(codes))
    if routes is not None and routes.layout == "blocks":
        stored = compute if storage == FLOAT32 else storage
        return device.verdict(stored, "matmul_blocks_cast" if routes.wide == FLOAT32 else "matmul_blocks")
    if routes is not None and routes.onednn:
        return device.verdict(storage, _by_onednn(storage))
    return device.verdict(storage, _other_kernel(storage, compute) or "matmul")


def _other_kernel(storage: Dtype, compute: Dtype) -> str | None:
    """Return the op that multiplies weights in `storage` in `compute`; None where that is the plain product."""
    if storage == compute:
        return None
    return "matmul_narrow" if storage == FLOAT32 else "matmul_cast"


def _by_onednn(storage: Dtype) -> str:
    """Return the op that multiplies weights in `storage` in float32 by oneDNN."""
    return "matmul_onednn" if storage == FLOAT32 else "matmul_cast_onednn"


def _plain_routes(
    storage: Dtype, compute: Dtype, device: DeviceFacts, calls: Calls, *, can_be_replaced: bool
) -> Routes | None:
    """Return the fastest routes for weights that lie plainly, by torch's own products or where they win by oneDNN's."""
    own = _routes_by(_other_kernel(storage, compute), storage, device)
    if compute != FLOAT32 or not can_be_replaced:
        return own
    other = _routes_by(_by_onednn(storage), storage, device)
    if other is None or other.cast_from is None:
        return own
    other = replace(other, onednn=True)
    return other if own is None or _total(other, calls) * _LIBRARY_GAIN <= _total(own, calls) else own


def _routes_by(other: str | None, storage: Dtype, device: DeviceFacts) -> Routes | None:
    """Return the routes by the plain product and `other`, whichever is faster for so many rows."""
    verdicts = [device.verdict(storage, op) for op in ("matmul", other) if op is not None]
    fastest = [_fastest(verdicts, rows) for rows in _MEASURED_ROWS]
    at_one, at_some, at_many = fastest
    if at_one is None or at_some is None or at_many is None:
        return None
    kernels = [kernel for _, kernel in (at_one, at_some, at_many)]
    cast_from = _FROM_ROWS[kernels.index(other)] if other in kernels else None
    return Routes("plain", cast_from, (at_one[0], at_some[0], at_many[0]))


def _chunks_win(storage: Dtype, compute: Dtype, device: DeviceFacts, routes: Routes) -> bool:
    """Whether attention of a prompt in chunks is faster than torch's kernel in the dtype that it would be asked for."""
    asked = storage if routes.cast_from is None else compute
    chunks, own = (device.verdict(*one) for one in ((storage, CHUNKS), (asked, "attention")))
    if not chunks.runs or not chunks.prefill_flops_per_s:
        return False
    return not own.prefill_flops_per_s or chunks.prefill_flops_per_s >= own.prefill_flops_per_s * _CHUNKS_GAIN


def with_compiled(routes: Routes, verdict: Verdict) -> Routes:
    """Return `routes` with compiled products of as many rows as these are faster for."""
    if not verdict.runs or not verdict.decode_bytes_per_s:
        return routes
    at_one = verdict.dtype.itemsize / verdict.decode_bytes_per_s
    if at_one > routes.seconds_per_element[0] * _COMPILED_LOSS:
        return routes
    compiled_rows, at_some = 1, routes.seconds_per_element[1]
    for rows in _COMPILED_ROWS:
        seconds = _mean_seconds(verdict, rows)
        if seconds is None or seconds * _COMPILED_GAIN > routes.seconds(rows):
            break
        compiled_rows = rows
        at_some = seconds if rows == _MEASURED_ROWS[1] else at_some
    per_element = (at_one, at_some, routes.seconds_per_element[2])
    cast_from = routes.cast_from
    if cast_from is not None and cast_from <= compiled_rows:
        # A mode around every step of one token costs more than what little is left to cast.
        cast_from = compiled_rows + 1
    return replace(routes, cast_from=cast_from, seconds_per_element=per_element, compiled_rows=compiled_rows)


def _block_routes(
    storage: Dtype, compute: Dtype, device: DeviceFacts, calls: Calls, plain: Routes | None
) -> Routes | None:
    stored = compute if storage == FLOAT32 else storage  # what the blocks are in
    if stored == FLOAT32:
        return None
    ways = {FLOAT32: device.verdict(stored, "matmul_blocks_cast"), stored: device.verdict(stored, "matmul_blocks")}
    if storage != FLOAT32:
        ways = {compute: ways[compute]}
    candidates = []
    for wide, verdict in ways.items():
        per_element = _per_element(verdict)
        if verdict.runs and per_element is not None:
            cast_from = plain.cast_from if plain and storage != FLOAT32 else None
            candidates.append(Routes("blocks", cast_from, per_element, wide))
    return min(candidates, key=lambda routes: _total(routes, calls), default=None)


def _total(routes: Routes, calls: Calls) -> float:
    return sum(routes.seconds(rows) * count for rows, count in calls)


def _fastest(verdicts: Iterable[Verdict], rows: int) -> tuple[float, str] | None:
    timed = [
        (seconds, verdict.op)
        for verdict in verdicts
        if verdict.runs and (seconds := _seconds(verdict, rows)) is not None
    ]
    return min(timed, default=None)


def _per_element(verdict: Verdict) -> tuple[float, float, float] | None:
    """Return the seconds for one element of a weight at the measured rows; None where they were not measured."""
    at_one, at_some, at_many = (_seconds(verdict, rows) for rows in _MEASURED_ROWS)
    return None if at_one is None or at_some is None or at_many is None else (at_one, at_some, at_many)


def _seconds(verdict: Verdict, rows: int) -> float | None:
    """Return the seconds for one element of a weight at a measured number of rows."""
    read, work = verdict.decode_bytes_per_s, verdict.prefill_flops_per_s
    if not read or not work:
        return None
    reading, multiplying = verdict.bytes_each / read, 2 * rows / work
    if rows == 1:
        return reading
    mean = _mean_seconds(verdict, rows)
    if rows == _MEASURED_ROWS[-1] or mean is None:
        return max(reading, multiplying)
    return mean


def _mean_seconds(verdict: Verdict, rows: int) -> float | None:
    """Return the seconds for one element over all shapes that were timed at `rows` rows."""
    timed = [timing for timing in verdict.timings if timing.rows == rows]
    elements = sum(timing.shape[0] * timing.shape[1] for timing in timed)
    return sum(timing.seconds for timing in timed) / elements if elements else None
