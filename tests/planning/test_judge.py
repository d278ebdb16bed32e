"""May a candidate be used: one fact at a time, the ground and the figures of every refusal."""

from __future__ import annotations

from dataclasses import replace

import factories as f
import pytest

from safe_dtype import prior_facts
from safe_dtype.facts import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT16,
    FLOAT32,
    CheckpointFacts,
    DeviceFacts,
    Dtype,
    HalfRange,
    MeasuredDrift,
    MemoryFacts,
    VerdictKind,
)
from safe_dtype.planning import Candidate, Decision, Ground, Policy, candidates, judge
from safe_dtype.planning.judge import loses, may_overflow, needed_ops


def judged(
    dtype: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts, policy: str = "auto", compute: Dtype | None = None
) -> Decision:
    """Return the verdict on weights stored in `dtype`, computed in it or in `compute`."""
    return judge(Candidate(dtype, compute or dtype), device, checkpoint, Policy.parse(policy))


def test_candidates_without_other_products() -> None:
    """Where no other way to multiply was measured, each dtype is computed in itself."""
    assert candidates(f.AVX2_CPU, f.checkpoint()) == tuple(
        Candidate(dtype, dtype) for dtype in (FLOAT32, BFLOAT16, FLOAT16)
    )


@pytest.mark.parametrize(
    ("saved", "op", "storage", "expected"),
    [
        pytest.param(BFLOAT16, "matmul_cast", BFLOAT16, Candidate(BFLOAT16, FLOAT32), id="16-bit-computed-in-float32"),
        pytest.param(FLOAT32, "matmul_narrow", FLOAT32, Candidate(FLOAT32, BFLOAT16), id="float32-multiplied-in-bf16"),
        pytest.param(BFLOAT16, "matmul_narrow", FLOAT32, None, id="only-for-a-float32-checkpoint"),
    ],
)
def test_candidates_with_other_products(saved: Dtype, op: str, storage: Dtype, expected: Candidate | None) -> None:
    """Storing one dtype and computing in another is a candidate where that product was measured."""
    device = replace(
        f.AVX2_CPU, verdicts=(*f.AVX2_CPU.verdicts, f.verdict(storage, VerdictKind.NATIVE, 10, 90, op=op))
    )
    plain = {Candidate(dtype, dtype) for dtype in (FLOAT32, BFLOAT16, FLOAT16)}
    assert set(candidates(device, f.checkpoint(saved))) - plain == ({expected} if expected else set())


HALF_FITS = HalfRange(900.0, 900.0)
SEEN_AT_THE_EDGE = HalfRange(16_376.0, 16_376.0)  # 4 times that is float16's end
SEEN_BEYOND = HalfRange(16_377.0, 16_377.0)


@pytest.mark.parametrize(
    ("dtype", "device", "checkpoint", "policy", "ground", "words"),
    [
        pytest.param(BFLOAT16, f.AMPERE, f.checkpoint(), "auto", None, "keeps every bit", id="native"),
        pytest.param(BFLOAT16, f.TURING, f.checkpoint(), "auto", None, "slow here", id="slow-is-no-ground"),
        pytest.param(BFLOAT16, f.ARC, f.checkpoint(), "auto", Ground.WRONG, "matmul: wrong here", id="wrong"),
        pytest.param(BFLOAT16, f.RDNA2, f.checkpoint(), "auto", Ground.CRASHES, "matmul", id="crashes"),
        pytest.param(
            BFLOAT16, f.device(bfloat16=(VerdictKind.UNSUPPORTED, 0, 0)), f.checkpoint(), "auto",
            Ground.UNSUPPORTED, "unsupported here", id="unsupported",
        ),
        pytest.param(FLOAT16, f.device("Mars"), f.checkpoint(FLOAT16), "auto", Ground.UNKNOWN, "Mars", id="unknown"),
        pytest.param(BFLOAT16, f.AMPERE, f.checkpoint(), "ladder=fp32", Ground.LADDER, "leaves it out", id="ladder"),
        pytest.param(FLOAT16, f.TURING, f.checkpoint(), "auto", Ground.RANGE, "did not look", id="range-unmeasured"),
        pytest.param(FLOAT16, f.TURING, f.checkpoint(half=HALF_FITS), "auto", None, "reach 900", id="range-fits"),
        pytest.param(
            FLOAT16, f.TURING, f.checkpoint(half=SEEN_AT_THE_EDGE), "auto", None, "16,400", id="two-bits-below-the-end"
        ),
        pytest.param(
            FLOAT16, f.TURING, f.checkpoint(half=SEEN_BEYOND), "auto", Ground.RANGE, "65504", id="less-than-two-bits-below"
        ),
        pytest.param(FLOAT16, f.TURING, f.checkpoint(FLOAT16), "auto", None, "keeps", id="range-of-its-own"),
        pytest.param(
            BFLOAT16, f.AMPERE, f.checkpoint(FLOAT32), "auto", Ground.ROUNDING, "to 8 significant bits", id="rounds-unasked"
        ),
        pytest.param(BFLOAT16, f.AMPERE, f.checkpoint(FLOAT32), "prefer=memory", None, "rounds", id="rounds-for-memory"),
        pytest.param(BFLOAT16, f.AMPERE, f.checkpoint(FLOAT16), "auto", Ground.ROUNDING, "to 8 significant bits", id="fp16-to-bf16"),
        pytest.param(
            FLOAT32, f.TURING, f.checkpoint(billions=7), "auto", Ground.MEMORY, "15 GB are free", id="memory"
        ),
        pytest.param(
            FLOAT32, prior_facts("NVIDIA Tesla T4"), f.checkpoint(billions=7), "auto", Ground.MEMORY,
            "16 GB are all it has", id="memory-of-what-is-not-here",
        ),
        pytest.param(
            FLOAT32, prior_facts("Apple M2 24 GB"), f.checkpoint(billions=7), "auto", Ground.MEMORY,
            "24 GB are all it has, and the system takes a part", id="main-memory-of-what-is-not-here",
        ),
    ],
)  # fmt: skip
def test_ground(
    dtype: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts, policy: str, ground: Ground | None, words: str
) -> None:
    """Each ground of rejection, beside the nearest case that is accepted."""
    decision = judged(dtype, device, checkpoint, policy)
    assert (decision.ground, decision.accepted) == (ground, ground is None)
    assert words in decision.reason


def test_a_tie_is_no_ratio() -> None:
    """Where a dtype takes float32's time, to two digits, that is said in words."""
    device = f.device(float32=(VerdictKind.NATIVE, 200, 4e3), bfloat16=(VerdictKind.NATIVE, 100, 4e3))
    reason = judged(BFLOAT16, device, f.checkpoint()).reason
    assert "takes as long as float32: as long for products" in reason
    assert "1 times" not in reason


@pytest.mark.parametrize(
    ("kl", "max_drift", "accepted"),
    [
        pytest.param(0.01, 0.02, True, id="within"),
        pytest.param(0.03, 0.02, False, id="beyond"),
        pytest.param(0.03, 0.05, True, id="within-a-wider-limit"),
        pytest.param(0.001, 0.0, False, id="no-drift-allowed"),
    ],
)
def test_measured_rounding(kl: float, max_drift: float, accepted: bool) -> None:
    """What rounding was measured to do decides against the policy's limit, and the reason has the figure."""
    measured = MeasuredDrift(BFLOAT16, BFLOAT16, f.drift(kl))
    decision = judged(BFLOAT16, f.AMPERE, replace(f.checkpoint(FLOAT32), drifts=(measured,)), f"max_drift={max_drift}")
    assert decision.ground is (None if accepted else Ground.DRIFT)
    assert f"{kl:.2g} nats" in decision.reason


def test_the_worst_output_is_named() -> None:
    """Where another output than the main one lies furthest off, its name is told, accepted or not."""
    boxes = replace(f.drift(0.0), kind="values", rel_rms=0.03)
    measured = MeasuredDrift(BFLOAT16, BFLOAT16, replace(f.drift(0.001), heads=(("pred_boxes", boxes),)))
    checkpoint = replace(f.checkpoint(FLOAT32), drifts=(measured,))
    assert "of which pred_boxes differs most" in judged(BFLOAT16, f.AMPERE, checkpoint, "max_drift=0.05").reason
    assert "pred_boxes: relative RMS" in judged(BFLOAT16, f.AMPERE, checkpoint, "max_drift=0.02").reason


def test_drift_that_could_not_be_measured() -> None:
    """A measurement that failed is no permission, and its reason is told."""
    measured = MeasuredDrift(BFLOAT16, BFLOAT16, None, "it has no tokenizer")
    decision = judged(BFLOAT16, f.AMPERE, replace(f.checkpoint(FLOAT32), drifts=(measured,)))
    assert decision.ground is Ground.ROUNDING
    assert "it has no tokenizer" in decision.reason


def test_unknown_memory_rejects_nothing() -> None:
    """A device that is known by its family alone has no size, so no model is too large for it."""
    device = replace(f.TURING, memory=MemoryFacts(0, 0, "device"))
    assert judged(FLOAT32, device, f.checkpoint(billions=400)).accepted


def test_the_kernels_that_count() -> None:
    """Products count in the way that they are computed, convolutions in the compute dtype, attention never."""
    device = f.device(
        float32=(VerdictKind.NATIVE, 14, 100),
        bfloat16=(VerdictKind.UNSUPPORTED, 0, 0),
        extra=(
            f.verdict(BFLOAT16, VerdictKind.NATIVE, 10, 90, op="matmul_cast"),
            f.verdict(BFLOAT16, VerdictKind.UNSUPPORTED, 0, 0, op="conv2d"),
            f.verdict(BFLOAT16, VerdictKind.UNSUPPORTED, 0, 0, op="attention"),
        ),
    )
    convolves = f.checkpoint(BFLOAT16, has_conv2d=True)
    assert judged(BFLOAT16, device, convolves).ground is Ground.UNSUPPORTED
    stored = judged(BFLOAT16, device, convolves, compute=FLOAT32)
    assert (stored.ground, stored.attention) == (None, "eager")
    assert stored.routes is not None
    assert stored.routes.cast_from == 1


@pytest.mark.parametrize(
    ("storage", "saved", "lossy", "overflows"),
    [
        (FLOAT32, BFLOAT16, False, False),
        (BFLOAT16, FLOAT32, True, False),
        (FLOAT16, BFLOAT16, True, True),
        (BFLOAT16, FLOAT16, True, False),
        (FLOAT16, FLOAT16, False, False),
        (FLOAT16, FLOAT8_E4M3, False, True),
        (BFLOAT16, FLOAT8_E4M3, False, False),
    ],
    ids=str,
)
def test_what_a_cast_loses(storage: Dtype, saved: Dtype, lossy: bool, overflows: bool) -> None:
    """Bits are lost where the storage cannot hold every saved number; range only where it ends far below."""
    assert loses(storage, f.checkpoint(saved)) is lossy
    assert may_overflow(storage, saved) is overflows


def test_needed_ops() -> None:
    """Convolutions count for models that have some."""
    assert set(needed_ops(f.checkpoint(has_conv2d=True))) - set(needed_ops(f.checkpoint())) == {"conv2d"}
