"""Storage is not compute: which kernels the products of a plan take, by the rates alone."""

from __future__ import annotations

import json
from dataclasses import replace

import factories as f
import pytest

from safe_dtype.facts import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    CheckpointFacts,
    DeviceFacts,
    Drift,
    Dtype,
    LinearFacts,
    MeasuredDrift,
    Timing,
    Verdict,
    VerdictKind,
)
from safe_dtype.planning import Candidate, Ground, Policy, Routes, make_plan, worth_measuring
from safe_dtype.planning.matmul_routes import with_compiled

SLOW, NATIVE = VerdictKind.SLOW, VerdictKind.NATIVE


def routes(dtype: Dtype, **rates: tuple[VerdictKind, float, float]) -> tuple[Verdict, ...]:
    """Return verdicts on other ways to multiply, from `op=(kind, GB/s at one row, GFLOP/s at 512)`."""
    return tuple(f.verdict(dtype, *rate, op=op) for op, rate in rates.items())


def with_routes(device: DeviceFacts, *more: Verdict) -> DeviceFacts:
    """Return `device` with verdicts more."""
    return replace(device, verdicts=(*device.verdicts, *more))


# The order of what two cores with AVX2 reach.
CAST = {"matmul_cast": (NATIVE, 7, 90)}
BLOCKS = {"matmul_blocks": (SLOW, 20, 2), "matmul_blocks_cast": (NATIVE, 20, 95)}
OLD_CPU = with_routes(f.AVX2_CPU, *routes(BFLOAT16, **CAST, **BLOCKS), *routes(FLOAT16, **CAST, **BLOCKS))
NO_BLOCKS = with_routes(f.AVX2_CPU, *routes(BFLOAT16, **CAST))
NEW_CPU = with_routes(
    f.AMX_CPU,
    *routes(
        BFLOAT16, matmul_cast=(NATIVE, 8, 140), matmul_blocks=(NATIVE, 45, 1400), matmul_blocks_cast=(NATIVE, 45, 145)
    ),
    *routes(FLOAT32, matmul_narrow=(NATIVE, 9, 900)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("device", "saved", "compute", "layout", "cast_from"),
    [
        pytest.param(OLD_CPU, BFLOAT16, FLOAT32, "blocks", 9, id="avx2-bf16"),
        pytest.param(OLD_CPU, FLOAT16, FLOAT32, "blocks", 9, id="avx2-fp16"),
        pytest.param(NO_BLOCKS, BFLOAT16, FLOAT32, "plain", 9, id="avx2-without-blocks"),
        pytest.param(NEW_CPU, BFLOAT16, BFLOAT16, "blocks", None, id="amx-bf16"),
    ],
)
def test_default_policy(device: DeviceFacts, saved: Dtype, compute: Dtype, layout: str, cast_from: int | None) -> None:
    """Weights stay as they are saved; what they are multiplied in, and from which layout, is the fastest."""
    plan = make_plan(device, f.checkpoint(saved))
    assert (plan.storage, plan.compute) == (saved, compute)
    assert plan.routes is not None
    assert (plan.routes.layout, plan.routes.cast_from) == (layout, cast_from)
    assert plan.ladder[0] == saved


def test_half_the_memory() -> None:
    """Computing in float32 from 16-bit weights is predicted to take the memory of 16 bit."""
    plan = make_plan(OLD_CPU, f.checkpoint(BFLOAT16))
    whole = next(one for one in plan.decisions if one.candidate == Candidate(FLOAT32, FLOAT32))
    assert plan.cost is not None
    assert plan.cost.weight_bytes * 2 == whole.cost.weight_bytes


@pytest.mark.parametrize(
    ("checkpoint", "policy"),
    [
        pytest.param(replace(f.checkpoint(BFLOAT16), file_format="pytorch"), Policy(), id="no-views-of-files"),
        pytest.param(f.checkpoint(BFLOAT16), Policy(mode="strict"), id="strict"),
        pytest.param(
            replace(f.checkpoint(BFLOAT16), linears=(LinearFacts(3072, 1024, 190, active=0.25),)),
            Policy(),
            id="mixture",
        ),
    ],
)
def test_no_layout(checkpoint: CheckpointFacts, policy: Policy) -> None:
    """Where a second copy of the weights would take memory, or nothing may be changed, they stay as they lie."""
    plan = make_plan(OLD_CPU, checkpoint, policy)
    assert plan.routes is not None
    assert plan.routes.layout == "plain"


def compiled(dtype: Dtype, gb_per_s: float, times_at_8: float) -> Verdict:
    """Return the verdict on compiled products: how fast weights are read at 1 row, and how much longer 8 rows take."""
    shape = (3072, 1024)
    at_one = dtype.itemsize * shape[0] * shape[1] / (gb_per_s * 1e9)
    timings = (Timing(1, shape, at_one), Timing(8, shape, at_one * times_at_8))
    return Verdict(dtype, "matmul_rows", NATIVE, "", gb_per_s * 1e9, max_rel_error=1e-3, timings=timings)


@pytest.mark.parametrize(
    ("gb_per_s", "times_at_8", "layout", "rows"),
    [
        pytest.param(24, 1.5, "plain", 8, id="faster-than-blocks"),
        pytest.param(20, 1.5, "plain", 8, id="as-fast-as-blocks-without-a-copy"),
        pytest.param(17, 1.5, "plain", 8, id="little-slower-than-blocks"),
        pytest.param(10, 1.5, "blocks", 0, id="slower-than-blocks"),
        pytest.param(24, 400.0, "plain", 1, id="faster-for-one-row-only"),
    ],
)
def test_compiled_products(gb_per_s: float, times_at_8: float, layout: str, rows: int) -> None:
    """Few rows take compiled products where these win; many rows are computed as they were."""
    device = with_routes(OLD_CPU, compiled(BFLOAT16, gb_per_s, times_at_8))
    plan = make_plan(device, f.checkpoint(BFLOAT16), Policy(prefer="memory"))
    assert plan.routes is not None
    assert (plan.routes.layout, plan.routes.compiled_rows, plan.routes.cast_from) == (layout, rows, 9)
    of_rows = {0: "", 1: "products of one row compiled", 8: "products of up to 8 rows compiled"}[rows]
    assert plan.chosen is not None
    assert of_rows in plan.chosen.reason
    assert ("products=compiled" in plan.what) == bool(rows)
    assert json.loads(json.dumps(plan.to_dict()))["routes"]["compiled_rows"] == rows


@pytest.mark.parametrize(
    ("cast_from", "times_at_8", "then"), [(1, 1.5, 9), (1, 400.0, 2), (9, 1.5, 9), (None, 1.5, None)]
)
def test_steps_of_few_rows_are_not_cast_around(cast_from: int | None, times_at_8: float, then: int | None) -> None:
    """Where products of few rows are compiled, a step of so many rows computes in the dtype of its weights."""
    routes = Routes("plain", cast_from, (1e-9, 1e-9, 1e-9))
    assert with_compiled(routes, compiled(BFLOAT16, 24, times_at_8)).cast_from == then


@pytest.mark.parametrize(("times_at_16", "rows", "then"), [(2.0, 16, 17), (400.0, 8, 9)])
def test_nine_to_sixteen_rows(times_at_16: float, rows: int, then: int) -> None:
    """Of 16 rows products are compiled where they win at 16 as well, which then is what 16 rows are expected to take."""
    verdict = compiled(BFLOAT16, 24, 1.5)
    shape, at_one = (3072, 1024), verdict.timings[0].seconds
    verdict = replace(verdict, timings=(*verdict.timings, Timing(16, shape, at_one * times_at_16)))
    routes = with_compiled(Routes("plain", 9, (1e-9, 4e-9, 1e-8)), verdict)
    assert (routes.compiled_rows, routes.cast_from) == (rows, then)
    expected = at_one * times_at_16 / (shape[0] * shape[1]) if rows == 16 else 4e-9
    assert routes.seconds(16) == pytest.approx(expected)


@pytest.mark.parametrize("times_slower", [0.98, 1.02])
def test_compiled_products_win_ties(times_slower: float) -> None:
    """Where both read one row alike compiled products are taken, for one row: for more of them they have to win."""
    plain = f.AVX2_CPU.verdict(BFLOAT16).decode_bytes_per_s or 0.0
    verdict = compiled(BFLOAT16, plain * 1e-9 / times_slower, 400.0)
    plan = make_plan(with_routes(f.AVX2_CPU, verdict), f.checkpoint(BFLOAT16), Policy(prefer="memory"))
    assert plan.routes is not None
    assert plan.routes.compiled_rows == 1


@pytest.mark.parametrize("times_slower", [1.08, 3.0])
def test_compiled_products_must_not_lose(times_slower: float) -> None:
    """Compiled products that are slower than torch's are not taken, nor those that came out wrong."""
    plain = f.AVX2_CPU.verdict(BFLOAT16).decode_bytes_per_s or 0.0
    slower = compiled(BFLOAT16, plain * 1e-9 / times_slower, 1.0)
    wrong = replace(compiled(BFLOAT16, plain * 1e-8, 1.0), kind=VerdictKind.WRONG, reason="a relative error of 0.5")
    for verdict in (slower, wrong):
        plan = make_plan(with_routes(f.AVX2_CPU, verdict), f.checkpoint(BFLOAT16), Policy(prefer="memory"))
        assert plan.routes is not None
        assert plan.routes.compiled_rows == 0


@pytest.mark.parametrize("mode", ["strict", "mixture", "pytorch"])
def test_where_products_are_compiled(mode: str) -> None:
    """In strict mode products are torch's; else they are compiled, whatever the format, and for experts as well."""
    device = with_routes(OLD_CPU, compiled(BFLOAT16, 24, 1.5))
    checkpoint, policy = f.checkpoint(BFLOAT16), Policy(prefer="memory", mode="strict" if mode == "strict" else "auto")
    if mode == "mixture":
        checkpoint = replace(checkpoint, linears=(LinearFacts(3072, 1024, 190, active=0.25),))
    if mode == "pytorch":
        checkpoint = replace(checkpoint, file_format="pytorch")
    plan = make_plan(device, checkpoint, policy)
    assert plan.routes is not None
    assert plan.routes.compiled_rows == (0 if mode == "strict" else 8)


def test_layout_has_to_win() -> None:
    """A layout that is read only a little faster is not made."""
    near = routes(BFLOAT16, matmul_cast=(NATIVE, 7, 90), matmul_blocks=(SLOW, 11.5, 2), matmul_blocks_cast=(NATIVE, 11.5, 90))  # fmt: skip
    plan = make_plan(with_routes(f.AVX2_CPU, *near), f.checkpoint(BFLOAT16), Policy(prefer="memory"))
    assert plan.routes is not None
    assert plan.routes.layout == "plain"


def test_order_is_for_the_weights() -> None:
    """A dtype that is ordered is what weights are stored in; they are computed in what is fast, without a warning."""
    plan = make_plan(OLD_CPU, f.checkpoint(BFLOAT16), ordered=BFLOAT16)
    assert (plan.storage, plan.compute, plan.warnings) == (BFLOAT16, FLOAT32, ())


def test_order_in_strict_mode() -> None:
    """In strict mode it is what they are computed in, too."""
    plan = make_plan(OLD_CPU, f.checkpoint(BFLOAT16), Policy(mode="strict"), ordered=BFLOAT16)
    assert (plan.storage, plan.compute) == (BFLOAT16, BFLOAT16)


def test_missing_kernels() -> None:
    """A device that can store a dtype and not multiply it computes every product in float32, one row too."""
    device = with_routes(
        f.device("V100", float32=(NATIVE, 750, 13e3), bfloat16=(VerdictKind.UNSUPPORTED, 0, 0)),
        *routes(BFLOAT16, matmul_cast=(NATIVE, 300, 12e3)),
    )
    plan = make_plan(device, f.checkpoint(BFLOAT16), Policy(prefer="memory"))
    assert (plan.storage, plan.compute) == (BFLOAT16, FLOAT32)
    assert plan.routes is not None
    assert plan.routes.cast_from == 1


def test_wrong_convolutions() -> None:
    """Where convolutions are wrong in the storage dtype, every step computes them in the other one."""
    wrong = f.verdict(BFLOAT16, VerdictKind.WRONG, 0, 0, op="conv2d")
    right = f.verdict(FLOAT32, NATIVE, 10, 100, op="conv2d")
    plan = make_plan(with_routes(OLD_CPU, wrong, right), f.checkpoint(BFLOAT16, has_conv2d=True))
    assert (plan.storage, plan.compute) == (BFLOAT16, FLOAT32)
    assert plan.routes is not None
    assert plan.routes.cast_from == 1


def test_fidelity() -> None:
    """prefer=fidelity keeps activations in float32 as well."""
    plan = make_plan(OLD_CPU, f.checkpoint(BFLOAT16), Policy(prefer="fidelity"))
    assert (plan.storage, plan.compute) == (FLOAT32, FLOAT32)


def test_ladder_names_storage() -> None:
    """The policy's ladder is one of storage dtypes."""
    plan = make_plan(OLD_CPU, f.checkpoint(BFLOAT16), Policy.parse("ladder=bf16>fp32"))
    assert (plan.storage, plan.compute, plan.ladder) == (BFLOAT16, FLOAT32, (BFLOAT16, FLOAT32))


def test_seconds_between_the_measured_rows() -> None:
    """Between measured numbers of rows the time goes in proportion, beyond the last with the rows."""
    found = make_plan(OLD_CPU, f.checkpoint(BFLOAT16)).routes
    assert found is not None
    one, some, many = found.seconds_per_element
    assert found.seconds(1) == one
    assert found.seconds(16) == some
    assert one <= found.seconds(8) <= some
    assert found.seconds(1024) == pytest.approx(2 * many)


SMALL = Drift("tokens", 512, 1e-4, 5e-4, 0.99, 0.1, 4e-3)
LARGE = replace(SMALL, kl_mean=0.3, top1_agreement=0.8)


def test_rounding_waits_for_its_drift() -> None:
    """float32 weights are not rounded before somebody has measured what that does, and the plan says what to measure."""
    plan = make_plan(NEW_CPU, f.checkpoint(FLOAT32))
    assert plan.storage == plan.compute == FLOAT32
    assert worth_measuring(plan) in (Candidate(BFLOAT16, BFLOAT16), Candidate(FLOAT32, BFLOAT16))


@pytest.mark.parametrize("candidate", [Candidate(BFLOAT16, BFLOAT16), Candidate(FLOAT32, BFLOAT16)], ids=str)
def test_small_drift(candidate: Candidate) -> None:
    """A drift within the policy's limit lets the rounding pass, and the reason says what was traded."""
    measured = MeasuredDrift(candidate.storage, candidate.compute, SMALL)
    plan = make_plan(NEW_CPU, replace(f.checkpoint(FLOAT32), drifts=(measured,)))
    assert Candidate(plan.storage, plan.compute) == candidate
    assert plan.chosen is not None
    assert "KL 0.0001 nats to float32, 99.0% of the top tokens the same" in plan.chosen.reason


def test_large_drift() -> None:
    """A drift beyond it rejects the candidate, even where memory is preferred, and another is measured next."""
    measured = MeasuredDrift(BFLOAT16, BFLOAT16, LARGE)
    checkpoint = replace(f.checkpoint(FLOAT32), drifts=(measured,))
    plan = make_plan(NEW_CPU, checkpoint)
    rejected = next(one for one in plan.decisions if one.candidate == Candidate(BFLOAT16, BFLOAT16))
    assert (rejected.ground, plan.storage) == (Ground.DRIFT, FLOAT32)
    assert "mean KL is 0.3 nats, the limit is 0.02" in rejected.reason
    assert worth_measuring(plan) == Candidate(FLOAT32, BFLOAT16)
    assert make_plan(NEW_CPU, checkpoint, Policy(prefer="memory")).chosen != rejected


@pytest.mark.parametrize("policy", ["strict", "prefer=memory", "prefer=fidelity", "ladder=fp32>bf16"])
def test_nothing_to_measure(policy: str) -> None:
    """Where the user has decided, or nothing is gained, no drift is asked for."""
    assert worth_measuring(make_plan(NEW_CPU, f.checkpoint(FLOAT32), Policy.parse(policy))) is None
    assert worth_measuring(make_plan(NEW_CPU, f.checkpoint(FLOAT32), ordered=FLOAT32)) is None


def test_json_and_text() -> None:
    """The routes are part of the plan's JSON, and its text names both dtypes and the layout."""
    plan = make_plan(OLD_CPU, f.checkpoint(BFLOAT16))
    read = json.loads(plan.to_json())
    assert read["routes"]["layout"] == "blocks"
    assert read["routes"]["wide"] == "float32"
    assert "bfloat16 stored, float32 computed, layout=blocks" in plan.explain()


@pytest.mark.parametrize(
    ("saved", "compute", "rates", "is_taken"),
    [
        pytest.param(FLOAT32, FLOAT32, {"matmul_onednn": (NATIVE, 3, 230)}, True, id="float32"),
        pytest.param(FLOAT32, FLOAT32, {"matmul_onednn": (NATIVE, 3, 92)}, False, id="no-faster"),
        pytest.param(FLOAT32, FLOAT32, {"matmul_onednn": (VerdictKind.WRONG, 3, 230)}, False, id="wrong"),
        pytest.param(BFLOAT16, FLOAT32, {"matmul_cast_onednn": (NATIVE, 3, 230)}, True, id="cast"),
        pytest.param(BFLOAT16, FLOAT32, {"matmul_cast_onednn": (NATIVE, 3, 85)}, False, id="cast-no-faster"),
    ],
)
def test_products_of_many_rows_by_onednn(
    saved: Dtype, compute: Dtype, rates: dict[str, tuple[VerdictKind, float, float]], *, is_taken: bool
) -> None:
    """Products of a prompt are oneDNN's where these were measured to be right and faster, from few rows on or from many."""
    device = with_routes(NO_BLOCKS, *routes(saved, **rates))
    plan = make_plan(device, f.checkpoint(saved), Policy(ladder=(saved,)))
    strict = make_plan(device, f.checkpoint(saved), Policy(mode="strict"))
    assert plan.routes is not None
    assert strict.routes is not None
    assert (plan.storage, plan.compute) == (saved, compute)
    assert (plan.routes.onednn, strict.routes.onednn) == (is_taken, False)
    assert plan.routes.cast_from == ({True: 90, False: None}[is_taken] if saved == FLOAT32 else 9)
    assert plan.chosen is not None
    assert ("by oneDNN" in plan.chosen.reason) == is_taken


@pytest.mark.parametrize("times", [0.9, 1.05, 2.0])
def test_attention_in_chunks(times: float) -> None:
    """Attention of a prompt is computed in chunks where that is a tenth faster than the kernel that would be asked for."""
    own = Verdict(FLOAT32, "attention", NATIVE, "", 5e9, 60e9), Verdict(BFLOAT16, "attention", NATIVE, "", 5e9, 20e9)
    device = with_routes(NO_BLOCKS, *own, Verdict(BFLOAT16, "attention_chunks", NATIVE, "", 5e9, times * 60e9))
    plan = make_plan(device, f.checkpoint(BFLOAT16), Policy(ladder=(BFLOAT16,)))
    strict = make_plan(device, f.checkpoint(BFLOAT16), Policy(mode="strict"))
    assert plan.routes is not None
    assert strict.routes is not None
    assert (plan.routes.cast_from, plan.routes.chunks, strict.routes.chunks) == (9, times > 1.1, False)


def test_a_dtype_that_nothing_is_computed_in_is_not_named() -> None:
    """Where products in float32 are faster for no number of rows, no plan says that any are computed in it."""
    device = with_routes(f.AMX_CPU, *routes(BFLOAT16, matmul_cast=(NATIVE, 3, 60)))
    for policy in (Policy(), Policy(ladder=(BFLOAT16,)), Policy(prefer="fidelity", ladder=(BFLOAT16,))):
        plan = make_plan(device, f.checkpoint(BFLOAT16), policy)
        assert (plan.storage, plan.compute, plan.routes and plan.routes.cast_from) == (BFLOAT16, BFLOAT16, None)
        assert "bfloat16 stored, float32 computed" not in plan.explain()
    plan = make_plan(device, f.checkpoint(BFLOAT16), ordered=BFLOAT16)
    assert "computed" not in plan.what
