"""Weights in 8 and 4 bits, and float32 ones in 16, as a plan sees them: where they are candidates, and what decides on them."""

from __future__ import annotations

from dataclasses import replace

import factories as f
import pytest

from safe_dtype.facts import (
    BFLOAT16,
    CODES,
    FLOAT16,
    FLOAT32,
    INT4,
    INT8,
    CheckpointFacts,
    DeviceFacts,
    Dtype,
    LinearFacts,
    MeasuredDrift,
    MemoryFacts,
    VerdictKind,
)
from safe_dtype.kernels.row_product import MOST_ROWS
from safe_dtype.planning import Candidate, Ground, Policy, make_plan, worth_measuring
from safe_dtype.planning.fewer_bits import coded_candidates, narrow_candidates
from safe_dtype.planning.matmul_routes import NARROW
from safe_dtype.planning.predict import saved_by_codes, weight_bytes

GB = 10**9


def cpu(*, free_bytes: int = 20 * GB, kind: VerdictKind = VerdictKind.NATIVE) -> DeviceFacts:
    """Return a CPU on which products by codes were measured."""
    ops = [
        (dtype, f"matmul_{codes}{cast}")
        for codes in CODES
        for dtype, cast in ((BFLOAT16, ""), (BFLOAT16, "_cast"), (FLOAT32, ""), (FLOAT16, "_cast"))
    ]
    more = tuple(f.verdict(dtype, kind, 12, 100, op=op) for dtype, op in ops)
    memory = MemoryFacts(free_bytes, free_bytes, "device")
    return replace(f.AVX2_CPU, device="cpu", vendor="cpu", memory=memory, verdicts=(*f.AVX2_CPU.verdicts, *more))


def measured(checkpoint: CheckpointFacts, kl: float, codes: Dtype = INT8) -> CheckpointFacts:
    """Return a checkpoint whose drift by codes was measured, whatever is computed in."""
    drifts = (MeasuredDrift(checkpoint.saved, one, f.drift(kl), codes=codes) for one in (checkpoint.saved, FLOAT32))
    return replace(checkpoint, drifts=(*checkpoint.drifts, *drifts))


both = pytest.mark.parametrize("codes", CODES, ids=str)


@both
@pytest.mark.parametrize(
    ("saved", "computes"),
    [(BFLOAT16, (BFLOAT16, FLOAT32)), (FLOAT16, (FLOAT32,)), (FLOAT32, (FLOAT32,))],
    ids=str,
)
def test_candidates(saved: Dtype, computes: tuple[Dtype, ...], codes: Dtype) -> None:
    """They are of the dtype that was saved; sums of codes in float16 would leave its range."""
    found = coded_candidates(codes, cpu(), f.checkpoint(saved), Policy())
    assert found == tuple(Candidate(saved, compute, codes) for compute in computes)


@both
@pytest.mark.parametrize(
    ("device", "checkpoint", "policy"),
    [
        pytest.param(f.AVX2_CPU, f.checkpoint(), Policy(), id="not-measured"),
        pytest.param(cpu(), replace(f.checkpoint(), file_format="pytorch"), Policy(), id="no-views-of-files"),
        pytest.param(cpu(), f.checkpoint(quantization="gptq"), Policy(), id="quantized"),
        pytest.param(cpu(), f.checkpoint(), Policy(mode="strict"), id="strict"),
        pytest.param(
            cpu(), replace(f.checkpoint(), linears=(LinearFacts(3072, 1024, 9, active=0.5),)), Policy(), id="mixture"
        ),
        pytest.param(cpu(), replace(f.checkpoint(), linears=(LinearFacts(64, 64, 9),)), Policy(), id="small"),
    ],
)
def test_none(device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy, codes: Dtype) -> None:
    """Where they cannot be made, or would save nothing, they are no candidates."""
    assert coded_candidates(codes, device, checkpoint, policy) == ()


@pytest.mark.parametrize(("codes", "bytes_of_a_group"), [(INT8, 32), (INT4, 16)], ids=str)
@pytest.mark.parametrize("saved", [BFLOAT16, FLOAT32], ids=str)
def test_bytes(saved: Dtype, codes: Dtype, bytes_of_a_group: int) -> None:
    """8 bits take a byte for each number and a scale for each output; 4 bits half a byte and a scale for every 32 inputs."""
    checkpoint = f.checkpoint(saved)
    (linear,) = checkpoint.linears
    scales = linear.numel // 32 if codes == INT4 else linear.out_features * linear.count
    wanted = linear.numel // 32 * bytes_of_a_group + scales * saved.itemsize
    assert weight_bytes(saved, checkpoint) - saved_by_codes(saved, codes, checkpoint) == wanted
    plan = make_plan(cpu(), measured(checkpoint, 1e-4, codes), Policy.parse(codes.name))
    assert plan.codes == codes
    assert plan.cost is not None
    assert plan.cost.weight_bytes == wanted


@pytest.mark.parametrize(("policy", "codes"), [("int8", INT8), ("prefer=memory", INT8), ("int4", INT4)])
@pytest.mark.parametrize("kl", [1e-4, 0.5])
def test_the_drift_decides(policy: str, codes: Dtype, kl: float) -> None:
    """What was measured to stay within the limit is loaded, and nothing else."""
    plan = make_plan(cpu(), measured(f.checkpoint(), kl, codes), Policy.parse(policy))
    assert plan.codes == (codes if kl < 0.01 else None)
    assert any(one.ground is Ground.DRIFT for one in plan.decisions) == (kl > 0.01)


@pytest.mark.parametrize("policy", ["auto", "prefer=fidelity", "strict", "ladder=bf16>fp32"])
def test_never_unasked(policy: str) -> None:
    """However fast and near it is, nobody gets it who has not asked for it."""
    plan = make_plan(cpu(), measured(f.checkpoint(), 1e-9), Policy.parse(policy))
    assert plan.codes is None
    assert not [one for one in plan.decisions if one.candidate.codes]


def test_wrong_in_8_bits() -> None:
    """Where products by 8-bit codes are wrong, 4 bits are rejected as well, for the output head would have 8; unmeasured they are not."""
    checkpoint, wrong = (
        measured(f.checkpoint(), 1e-4, INT4),
        f.verdict(BFLOAT16, VerdictKind.WRONG, 12, 100, op="matmul_int8"),
    )
    others = tuple(one for one in cpu().verdicts if "int8" not in one.op)
    for verdicts, ground in ((others, None), ((*others, wrong), Ground.WRONG)):
        plan = make_plan(replace(cpu(), verdicts=verdicts), checkpoint, "int4")
        (decision,) = (one for one in plan.decisions if one.candidate == Candidate(BFLOAT16, BFLOAT16, INT4))
        assert decision.ground == ground


def test_nothing_else_fits() -> None:
    """Where it alone fits it is measured, and loaded where its drift allows that; otherwise the rest lies on the disk."""
    device, checkpoint = cpu(free_bytes=1 * GB), f.checkpoint()
    before = make_plan(device, checkpoint, expected=())
    assert (before.codes, before.device_map) == (None, "auto")
    candidate = worth_measuring(before)
    assert candidate is not None
    assert candidate.codes == INT8
    plan = make_plan(device, measured(checkpoint, 1e-4))
    assert (plan.codes, plan.device_map) == (INT8, None)
    assert plan.reason == "nothing wider that is right here fits"
    spread = make_plan(device, measured(checkpoint, 0.5))
    assert (spread.codes, spread.device_map) == (None, "auto")


def test_the_limit_that_would_take_it() -> None:
    """Who asks for codes that drift too far is told how far, and the least limit that takes them, which does."""
    checkpoint = measured(f.checkpoint(), 0.0312, INT4)
    (warning,) = make_plan(cpu(), checkpoint, Policy(int4=True)).warnings
    assert "int4 was asked for" in warning
    assert "mean KL is 0.0312 nats, the limit is 0.02" in warning
    advised = warning.partition("--policy ")[2].partition("`")[0]
    assert advised == "int4,max_drift=0.032"
    assert make_plan(cpu(), checkpoint, Policy.parse(advised)).codes == INT4


def test_fewer_bits_where_nothing_else_fits() -> None:
    """4 bits come unasked only where 8 do not fit either; never where 8 fit, or drift too far."""
    checkpoint = measured(measured(f.checkpoint(), 1e-4), 2e-3, INT4)
    sizes = {codes: make_plan(cpu(), checkpoint, Policy.parse(codes.name)).cost.bytes for codes in CODES}
    assert make_plan(cpu(free_bytes=sizes[INT8]), checkpoint).codes == INT8
    smallest = make_plan(cpu(free_bytes=sizes[INT8] - 1), checkpoint)
    assert (smallest.codes, smallest.device_map) == (INT4, None)
    assert smallest.reason == "nothing wider that is right here fits"
    assert make_plan(cpu(free_bytes=sizes[INT4] - 1), checkpoint).device_map == "auto"
    far = measured(measured(f.checkpoint(), 0.5), 2e-3, INT4)
    assert make_plan(cpu(free_bytes=sizes[INT8]), far).codes is None
    assert make_plan(cpu(), checkpoint, Policy(prefer="memory")).codes == INT8


def test_measured_in_turn() -> None:
    """Where 8 bits do not fit either, it is 4 bits that are worth measuring."""
    size = make_plan(cpu(), measured(f.checkpoint(), 1e-4), Policy(int8=True)).cost.bytes
    before = make_plan(cpu(free_bytes=size - 1), f.checkpoint(), expected=())
    candidate = worth_measuring(before)
    assert candidate is not None
    assert candidate.codes == INT4


def test_what_does_not_fit_either() -> None:
    """Beyond the memory in 8 bits as well, nothing is measured, and what is left on the disk is not rounded."""
    plan = make_plan(cpu(free_bytes=GB // 4), f.checkpoint(), Policy(int8=True))
    assert worth_measuring(plan) is None
    assert (plan.codes, plan.device_map) == (None, "auto")
    assert next(way for way in plan.ways if way.name == "int8 weights").fits is False


@pytest.mark.parametrize(("ordered", "codes"), [(BFLOAT16, INT8), (FLOAT32, None)], ids=str)
def test_orders(ordered: Dtype, codes: Dtype | None) -> None:
    """An order for the dtype of the files allows 8 bits where they are asked for, and one for another dtype does not."""
    checkpoint = measured(f.checkpoint(), 1e-4)
    plan = make_plan(cpu(), checkpoint, Policy(int8=True), ordered=ordered)
    assert (plan.storage, plan.codes) == (ordered, codes)
    assert make_plan(cpu(), checkpoint, Policy(prefer="memory"), ordered=ordered).codes is None
    assert bool(plan.warnings) == (codes is None)


def test_an_order_that_codes_do_not_go_with() -> None:
    """Where the caller's dtype is why there are no codes, the warning says so, and what to leave out."""
    plan = make_plan(cpu(), measured(f.checkpoint(), 1e-4), Policy(int8=True), ordered=FLOAT32)
    (warning,) = plan.warnings
    assert "int8 was asked for, and float32 is loaded: dtype=float32 was given" in warning
    assert "the files alone, which is bfloat16. Next: leave dtype= out" in warning
    assert "rounds linear weights" not in warning


def test_twin_of_what_is_measured_later() -> None:
    """Of two ways to compute with the same codes, the one that no load measures says which one is."""
    both_ways = [Candidate(BFLOAT16, compute, INT8) for compute in (BFLOAT16, FLOAT32)]
    twins = {one.candidate for one in make_plan(cpu(), f.checkpoint(), Policy(int8=True), expected=()).decisions}
    assert twins.issuperset(both_ways)
    for taken, other in (both_ways, both_ways[::-1]):
        plan = make_plan(cpu(), f.checkpoint(), Policy(int8=True), expected=(taken,))
        (left,) = (one for one in plan.decisions if one.candidate == other)
        assert left.ground is Ground.ROUNDING
        assert f"was not measured: the first load measures int8 computed in {taken.compute} alone" in left.reason
        assert "Where the column 'computed' is empty, products" in plan.explain(width=200)


@both
@pytest.mark.parametrize("kind", [VerdictKind.WRONG, VerdictKind.UNSUPPORTED], ids=str)
def test_bad_products(codes: Dtype, kind: VerdictKind) -> None:
    """Products that come out wrong, or are not there, are not used, whoever asks for them."""
    plan = make_plan(cpu(kind=kind), measured(f.checkpoint(), 1e-4, codes), Policy.parse(codes.name))
    assert plan.codes is None
    assert f"{codes} was asked for" in plan.warnings[0]


def test_ladder() -> None:
    """Where to go on is what it would be without 8 bits, the dtype of the files first."""
    plan = make_plan(cpu(), measured(f.checkpoint(), 1e-4), Policy(int8=True))
    assert plan.ladder[0] == BFLOAT16
    assert FLOAT32 in plan.ladder


def narrow_cpu(*, free_bytes: int = 20 * GB, rate: float = 12) -> DeviceFacts:
    """Return a CPU on which products by float32 weights in 16 bit were measured; it reads so many GB a second."""
    more = tuple(
        f.verdict(FLOAT32, VerdictKind.NATIVE, rate, 100, op=f"matmul_{dtype}_rows") for dtype in (BFLOAT16, FLOAT16)
    )
    device = cpu(free_bytes=free_bytes)
    return replace(device, verdicts=(*device.verdicts, *more))


def wide(narrower: Dtype | None = BFLOAT16) -> CheckpointFacts:
    """Return a checkpoint in float32 whose numbers are those of another dtype."""
    return replace(f.checkpoint(FLOAT32), narrower=narrower)


def test_numbers_that_were_cast_up() -> None:
    """A float32 checkpoint of bfloat16 numbers is held in half the memory, with no bit less, and the plan says why."""
    plan = make_plan(narrow_cpu(), wide())
    assert (plan.storage, plan.compute, plan.codes) == (FLOAT32, FLOAT32, BFLOAT16)
    assert plan.routes is not None
    assert plan.routes.layout == NARROW
    assert plan.reason.startswith("saved in float32, every weight is a bfloat16 number; ")
    assert plan.chosen is not None
    assert "keeps every bit of the weights" in plan.chosen.reason
    assert plan.cost is not None
    assert plan.cost.weight_bytes * 2 == weight_bytes(FLOAT32, wide())


@pytest.mark.parametrize("policy", ["prefer=speed", "prefer=fidelity"])
def test_whatever_is_preferred(policy: str) -> None:
    """Faster and as exact, it is chosen for speed and for fidelity."""
    assert make_plan(narrow_cpu(), wide(), policy).codes == BFLOAT16


def test_for_memory() -> None:
    """Where memory counts most, activations and cache are in 16 bit as well, as they are of any float32 checkpoint."""
    plan = make_plan(narrow_cpu(), wide(), "prefer=memory")
    assert (plan.storage, plan.codes) == (BFLOAT16, None)


def test_as_fast() -> None:
    """Of two that take as long and are as exact the smaller is chosen; one that takes longer only for its memory."""
    reads = f.AVX2_CPU.verdict(FLOAT32).decode_bytes_per_s
    assert reads is not None
    tied = make_plan(narrow_cpu(rate=reads / 2.02 / GB), wide())
    assert tied.codes == BFLOAT16
    slow = narrow_cpu(rate=reads / 8 / GB)
    assert make_plan(slow, wide()).codes is None
    tight = replace(slow, memory=MemoryFacts(2 * GB, 2 * GB, "device"))
    assert make_plan(tight, wide(), ordered=FLOAT32).codes == BFLOAT16


def test_ordered_float32() -> None:
    """Who orders float32 gets its numbers, however they are held; who is strict gets float32 as it is."""
    assert make_plan(narrow_cpu(), wide(), ordered=FLOAT32).codes == BFLOAT16
    assert make_plan(narrow_cpu(), wide(), "strict").codes is None


def test_what_has_to_be_rounded() -> None:
    """Other numbers are rounded to float16, which keeps most bits, after that was measured, and never by order."""
    before = make_plan(narrow_cpu(), wide(None), expected=())
    (decision,) = (one for one in before.decisions if one.candidate.codes)
    assert (decision.candidate.codes, decision.ground) == (FLOAT16, Ground.ROUNDING)
    assert before.codes is None
    for kl, codes in ((1e-4, FLOAT16), (0.5, None)):
        drifts = (MeasuredDrift(FLOAT32, FLOAT32, f.drift(kl), codes=FLOAT16),)
        plan = make_plan(narrow_cpu(), replace(wide(None), drifts=drifts))
        assert plan.codes == codes
    assert plan.codes is None
    assert narrow_candidates(narrow_cpu(), wide(None), Policy(), FLOAT32) == ()


@both
def test_codes_before_sixteen_bits(codes: Dtype) -> None:
    """Who asks for codes gets them where they were measured to be near enough, of numbers that were cast up as well."""
    checkpoint = replace(wide(), drifts=measured(wide(), 1e-4, codes).drifts)
    assert make_plan(narrow_cpu(), checkpoint, codes.name).codes == codes


def test_no_codes_where_sixteen_bits_fit() -> None:
    """Where the numbers of a float32 checkpoint fit in 16 bit, however near codes would be, none are looked at."""
    checkpoint = measured(wide(), 1e-9)
    size = make_plan(narrow_cpu(), checkpoint, ordered=FLOAT32).cost.bytes
    plan = make_plan(narrow_cpu(free_bytes=size), checkpoint)
    assert not [one for one in plan.decisions if one.candidate.codes in CODES]
    tight = make_plan(narrow_cpu(), checkpoint, "int8").cost.bytes
    tighter = make_plan(narrow_cpu(free_bytes=tight), checkpoint)
    assert tighter.codes == INT8
    assert tighter.reason == "nothing wider that is right here fits"


@pytest.mark.parametrize(
    ("device", "checkpoint"),
    [
        pytest.param(cpu(), wide(), id="not-measured"),
        pytest.param(narrow_cpu(), f.checkpoint(), id="saved-in-16-bit"),
        pytest.param(narrow_cpu(), replace(wide(), file_format="pytorch"), id="no-views-of-files"),
        pytest.param(narrow_cpu(), replace(wide(), linears=(LinearFacts(64, 64, 9),)), id="small"),
    ],
)
def test_none_in_16_bit(device: DeviceFacts, checkpoint: CheckpointFacts) -> None:
    """Where it cannot be made, or would save nothing, it is no candidate."""
    assert narrow_candidates(device, checkpoint, Policy(), None) == ()


def test_no_mode_around_a_token() -> None:
    """Where oneDNN is the quickest for what is not laid out, it is asked for prompts alone, whatever it gains at one row."""
    device = narrow_cpu()
    quick = f.verdict(FLOAT32, VerdictKind.NATIVE, 60, 400, op="matmul_onednn")
    device = replace(device, verdicts=(*device.verdicts, quick))
    plain = make_plan(device, wide(None), expected=())
    assert plain.routes is not None
    assert plain.routes.cast_from == 1
    routes = make_plan(device, wide(), "prefer=memory", ordered=FLOAT32).routes
    assert routes is not None
    assert (routes.layout, routes.onednn) == (NARROW, True)
    assert routes.cast_from is not None
    assert routes.cast_from > MOST_ROWS
