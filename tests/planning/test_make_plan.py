"""Facts in, plan out: no device, no checkpoint, no torch."""

from __future__ import annotations

import pickle
from dataclasses import replace

import factories as f
import pytest

from safe_dtype.errors import NoSafeDtypeError, StrictModeError
from safe_dtype.facts import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT16,
    FLOAT32,
    DeviceFacts,
    Dtype,
    HalfRange,
    LearnedFailure,
    VerdictKind,
)
from safe_dtype.planning import Ground, Policy, make_plan

SPEED, MEMORY, FIDELITY = Policy(), Policy(prefer="memory"), Policy(prefer="fidelity")


@pytest.mark.parametrize(
    ("device", "saved", "storage"),
    [
        pytest.param(f.AMPERE, BFLOAT16, BFLOAT16, id="a100-bf16"),
        pytest.param(f.AMPERE, FLOAT16, FLOAT16, id="a100-fp16"),
        pytest.param(f.AMPERE, FLOAT32, FLOAT32, id="a100-fp32-is-not-rounded-unasked"),
        pytest.param(f.TURING, BFLOAT16, FLOAT32, id="t4-bf16-range-may-not-fit-fp16"),
        pytest.param(f.TURING, FLOAT16, FLOAT16, id="t4-fp16"),
        pytest.param(f.TURING, FLOAT32, FLOAT32, id="t4-fp32"),
        pytest.param(f.VOLTA, BFLOAT16, FLOAT32, id="v100-bf16"),
        pytest.param(f.VOLTA, FLOAT16, FLOAT16, id="v100-fp16"),
        pytest.param(f.GTX_1660, FLOAT16, FLOAT32, id="gtx1660-fp16-is-broken"),
        pytest.param(f.GTX_1660, BFLOAT16, FLOAT32, id="gtx1660-bf16"),
        pytest.param(f.P40, FLOAT16, FLOAT32, id="p40-fp16-is-60-times-slower"),
        pytest.param(f.P40, BFLOAT16, FLOAT32, id="p40-bf16"),
        pytest.param(f.M1, BFLOAT16, BFLOAT16, id="m1-bf16-emulated-but-half-the-bytes-to-read"),
        pytest.param(f.M1, FLOAT16, FLOAT16, id="m1-fp16"),
        pytest.param(f.M3, BFLOAT16, BFLOAT16, id="m3-bf16"),
        pytest.param(f.MI210, BFLOAT16, BFLOAT16, id="mi210-bf16"),
        pytest.param(f.RDNA2, BFLOAT16, FLOAT32, id="rdna2-bf16-kills-the-process"),
        pytest.param(f.RDNA2, FLOAT16, FLOAT16, id="rdna2-fp16"),
        pytest.param(f.ARC, BFLOAT16, FLOAT32, id="arc-16-bit-is-wrong"),
        pytest.param(f.AVX2_CPU, BFLOAT16, FLOAT32, id="avx2-bf16"),
        pytest.param(f.AVX2_CPU, FLOAT16, FLOAT32, id="avx2-fp16"),
        pytest.param(f.AMX_CPU, BFLOAT16, BFLOAT16, id="amx-bf16"),
        pytest.param(f.AMX_CPU, FLOAT32, FLOAT32, id="amx-fp32"),
    ],
)
def test_default_policy(device: DeviceFacts, saved: Dtype, storage: Dtype) -> None:
    """The fastest dtype that keeps the checkpoint's numbers is chosen."""
    plan = make_plan(device, f.checkpoint(saved))
    assert plan.storage == plan.compute == storage
    assert plan.ladder[0] == storage
    assert plan.chosen is not None
    assert plan.chosen.accepted


@pytest.mark.parametrize(
    ("device", "saved", "storage"),
    [
        pytest.param(f.AMPERE, FLOAT32, BFLOAT16, id="a100-fp32-rounds-to-bf16-whose-range-fits"),
        pytest.param(f.TURING, BFLOAT16, BFLOAT16, id="t4-bf16-slow-but-small"),
        pytest.param(f.AVX2_CPU, BFLOAT16, BFLOAT16, id="avx2"),
        pytest.param(f.GTX_1660, FLOAT16, BFLOAT16, id="gtx1660-fp16-broken-so-the-other-two-bytes"),
    ],
)
def test_prefer_memory(device: DeviceFacts, saved: Dtype, storage: Dtype) -> None:
    """prefer=memory takes the smallest that runs, rounding allowed, never a range that may not fit."""
    assert make_plan(device, f.checkpoint(saved), MEMORY).storage == storage
    assert make_plan(device, f.checkpoint(saved), "prefer=memory") == make_plan(device, f.checkpoint(saved), MEMORY)


@pytest.mark.parametrize("device", [f.AMPERE, f.AMX_CPU, f.MI210], ids=lambda device: device.name)
def test_prefer_fidelity(device: DeviceFacts) -> None:
    """prefer=fidelity computes in the most exact dtype, whatever it takes."""
    assert make_plan(device, f.checkpoint(BFLOAT16), FIDELITY).compute == FLOAT32


def test_fidelity_breaks_ties() -> None:
    """Within 10 % of the fastest, the more exact dtype is chosen."""
    near = f.device(
        float32=(VerdictKind.NATIVE, 100, 1000),
        bfloat16=(VerdictKind.NATIVE, 52, 1000),
        float16=(VerdictKind.NATIVE, 50, 1000),
    )
    far = f.device(
        float32=(VerdictKind.NATIVE, 100, 1000),
        bfloat16=(VerdictKind.NATIVE, 80, 1000),
        float16=(VerdictKind.NATIVE, 50, 1000),
    )
    assert make_plan(near, f.checkpoint(BFLOAT16)).storage == FLOAT32
    assert "within 10 %" in make_plan(near, f.checkpoint(BFLOAT16)).reason
    assert make_plan(far, f.checkpoint(BFLOAT16)).storage == BFLOAT16


def test_workload_decides() -> None:
    """On one device a long prompt and a long answer get different dtypes."""
    prompt = Policy.parse("prompt=4096,new=1")
    answer = Policy.parse("prompt=8,new=1024")
    assert make_plan(f.AVX2_CPU, f.checkpoint(), prompt).storage == FLOAT32
    assert make_plan(f.AVX2_CPU, f.checkpoint(), answer).storage == BFLOAT16


def test_range_known_to_fit() -> None:
    """Activations that were measured and stay small let a bf16 checkpoint run in float16."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, half=HalfRange(900.0, 900.0)))
    assert (plan.storage, plan.rescale, plan.islands) == (FLOAT16, None, ())


def test_range_known_not_to_fit() -> None:
    """Activations that were measured near float16's end reject it, with both figures."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, half=HalfRange(4e4, 4e4)))
    half = next(one for one in plan.decisions if one.candidate.compute == FLOAT16)
    assert half.ground is Ground.RANGE
    assert "40,000" in half.reason
    assert "65504" in half.reason


def test_range_rescued() -> None:
    """A rescale whose drift was measured to be small makes float16 the plan, and the plan carries it."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, half=f.rescued()))
    assert plan.storage == FLOAT16
    assert plan.rescale == f.rescued().rescale
    assert plan.islands == ("model.layers.3.mlp",)
    assert "residual 2^-6" in plan.explain(width=300)
    assert plan.to_dict()["rescale"]["shifts"][0]["bits"] == 6


@pytest.mark.parametrize(
    ("half", "ground", "said"),
    [
        pytest.param(f.rescued(drift=None), Ground.RANGE, "not verified", id="nobody-verified-it"),
        pytest.param(f.rescued(drift=f.drift(0.3)), Ground.DRIFT, "0.3 nats", id="finite-and-wrong"),
        pytest.param(f.rescued(problem="no gauge reaches it"), Ground.RANGE, "no gauge", id="out-of-reach"),
        pytest.param(HalfRange(9.0, 9.0, drift=f.drift(0.3)), Ground.DRIFT, "0.3 nats", id="in-range-and-wrong"),
    ],
)
def test_range_not_rescued(half: HalfRange, ground: Ground, said: str) -> None:
    """Without a rescue that holds, float16 is rejected and nothing is rescaled."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, half=half))
    found = next(one for one in plan.decisions if one.candidate.compute == FLOAT16)
    assert (found.ground, plan.storage, plan.rescale, plan.islands) == (ground, FLOAT32, None, ())
    assert said in found.reason


def test_an_order_that_drifts_is_rescued_all_the_same() -> None:
    """Plain float16 would overflow: it is rescaled, with a warning that names the figure."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, half=f.rescued(drift=f.drift(0.3))), ordered=FLOAT16)
    assert (plan.storage, plan.rescale) == (FLOAT16, f.rescued().rescale)
    assert any("0.3 nats" in text for text in plan.warnings)


def test_islands_take_room() -> None:
    """Weights of a module that stays in float32 count with four bytes."""
    checkpoint = f.checkpoint(BFLOAT16)
    name = checkpoint.tensors[0].name.rpartition(".")[0]
    costs = [
        make_plan(f.TURING, replace(checkpoint, half=replace(f.rescued(), islands=islands))).cost
        for islands in ((), (name,))
    ]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[1].weight_bytes - costs[0].weight_bytes == 2 * checkpoint.tensors[0].numel


def test_what_a_text_does_not_reach() -> None:
    """Parts of the model that were not measured are named in a warning."""
    half = replace(f.rescued(), unseen=("model.vision_tower",))
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, half=half))
    assert plan.storage == FLOAT16
    assert any("model.vision_tower" in text for text in plan.warnings)


def test_range_of_another_dtype() -> None:
    """A rescue of float16 is none of bfloat16's business."""
    plan = make_plan(f.AMPERE, f.checkpoint(BFLOAT16, half=f.rescued()), ordered=BFLOAT16)
    assert (plan.storage, plan.rescale, plan.islands) == (BFLOAT16, None, ())


def test_memory_tight() -> None:
    """Where float32 does not fit, the two-byte dtype is chosen though it is slow."""
    tight = replace(f.TURING, memory=replace(f.TURING.memory, free_bytes=2 * f.GB))
    plan = make_plan(tight, f.checkpoint(BFLOAT16))
    assert plan.storage == BFLOAT16
    assert plan.device_map is None
    full = next(one for one in plan.decisions if one.candidate.compute == FLOAT32)
    assert full.ground is Ground.MEMORY


def test_nothing_fits() -> None:
    """Where nothing fits whole, the smallest that is right is spread with device_map, and the plan says so."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, billions=40))
    assert (plan.storage, plan.device_map) == (BFLOAT16, "auto")
    assert "device_map='auto'" in plan.warnings[0]


def test_nothing_is_right() -> None:
    """Where every dtype fails for another reason than memory, the error lists each with its reason."""
    broken = f.device("broken", float32=(VerdictKind.WRONG, 0, 0), bfloat16=(VerdictKind.CRASHES, 0, 0))
    with pytest.raises(NoSafeDtypeError) as caught:
        make_plan(broken, f.checkpoint())
    assert "float32: matmul: wrong here" in str(caught.value)
    assert "float16: nobody has measured" in str(caught.value)
    assert str(caught.value).endswith("Next: order float16 with dtype=..., which is loaded with a warning.")


def test_a_ladder_that_leaves_nothing() -> None:
    """The error advises against what is in the way, the ladder; what it advises gives a plan."""
    overflows = f.checkpoint(half=f.rescued(problem="activations reach 422,000"))
    with pytest.raises(NoSafeDtypeError) as caught:
        make_plan(f.TURING, overflows, Policy.parse("ladder=fp16"))
    assert str(caught.value).endswith(
        "Next: leave out the policy's ladder, or put another dtype on it; or order float16 with dtype=..., which is loaded "
        "with a warning."
    )
    assert make_plan(f.TURING, overflows, Policy.parse("ladder=fp16>fp32")).storage == FLOAT32
    assert make_plan(f.TURING, overflows).storage != FLOAT16
    assert make_plan(f.TURING, overflows, ordered=FLOAT16).warnings


@pytest.mark.parametrize("ordered", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_order_is_obeyed(mode: str, ordered: Dtype) -> None:
    """A dtype the caller passes that runs is loaded, slow or not, in either mode."""
    plan = make_plan(f.AVX2_CPU, f.checkpoint(BFLOAT16), Policy.parse(mode), ordered=ordered)
    assert plan.storage == ordered
    assert plan.ordered == ordered


def test_slow_order_warns() -> None:
    """Ordering a slow dtype warns with the measured verdict."""
    (warning,) = make_plan(f.AVX2_CPU, f.checkpoint(BFLOAT16), ordered=BFLOAT16).warnings
    assert "slow" in warning
    assert "AVX2 CPU" in warning


def test_wrong_order_warns() -> None:
    """Ordering a dtype whose results are wrong here warns in auto mode."""
    plan = make_plan(f.GTX_1660, f.checkpoint(FLOAT16), ordered=FLOAT16)
    assert plan.storage == FLOAT16
    assert "wrong" in plan.warnings[0]


def test_order_that_crashes() -> None:
    """An order that is known to kill the process is replaced in auto mode, and the warning names both."""
    plan = make_plan(f.RDNA2, f.checkpoint(BFLOAT16), ordered=BFLOAT16)
    assert plan.storage == FLOAT32
    assert "bfloat16" in plan.warnings[0]
    assert "float32" in plan.warnings[0]


def test_storage_format_is_no_compute_dtype() -> None:
    """Ordering float8 is an error: models are stored in it, not computed."""
    with pytest.raises(StrictModeError, match="no model computes in it") as caught:
        make_plan(f.AMPERE, f.checkpoint(), ordered=FLOAT8_E4M3)
    assert "strict" not in str(caught.value)
    assert set(caught.value.would_work) == {"float32", "bfloat16", "float16"}
    assert pickle.loads(pickle.dumps(caught.value)).only_stores


def test_only_dtypes_that_an_order_gets_are_named() -> None:
    """A dtype that would be replaced, or comes out wrong, is not among those that would work."""
    with pytest.raises(StrictModeError) as caught:
        make_plan(f.GTX_1660, f.checkpoint(FLOAT32), ordered=FLOAT8_E4M3)
    assert "float16" not in caught.value.would_work
    assert "float32" in caught.value.would_work


@pytest.mark.parametrize("device", [f.AMPERE, f.TURING, f.ARC], ids=lambda device: device.name)
def test_quantized(device: DeviceFacts) -> None:
    """A quantized checkpoint keeps its quantizer's dtype rule on every device."""
    plan = make_plan(device, f.checkpoint(FLOAT16, quantization="gptq"))
    assert plan.quantization == "gptq"
    assert "its quantizer chooses the dtype" in plan.reason


def test_users_ladder() -> None:
    """The policy's ladder limits and orders the choice."""
    plan = make_plan(f.AMPERE, f.checkpoint(BFLOAT16), Policy.parse("ladder=fp32>bf16"))
    assert plan.ladder == (FLOAT32, BFLOAT16)
    assert [one.ground for one in plan.decisions if one.candidate.compute == FLOAT16] == [Ground.LADDER]


def test_conv_verdict_counts() -> None:
    """A dtype that multiplies well and convolves wrongly is rejected for models that convolve, and only for them."""
    wrong = f.verdict(BFLOAT16, VerdictKind.WRONG, 0, 0, op="conv2d")
    device = replace(f.AMX_CPU, verdicts=(*f.AMX_CPU.verdicts, wrong))
    assert make_plan(device, f.checkpoint(BFLOAT16, has_conv2d=True)).storage == FLOAT32
    assert make_plan(device, f.checkpoint(BFLOAT16)).storage == BFLOAT16


def test_eager_attention() -> None:
    """Where only the fused attention kernel fails, the dtype stays and attention is eager."""
    missing = f.verdict(BFLOAT16, VerdictKind.UNSUPPORTED, 0, 0, op="attention")
    device = replace(f.AMX_CPU, verdicts=(*f.AMX_CPU.verdicts, missing))
    plan = make_plan(device, f.checkpoint(BFLOAT16))
    assert (plan.storage, plan.attention) == (BFLOAT16, "eager")


def test_without_rates() -> None:
    """A device known only from priors is planned by verdict and the prior order."""
    unmeasured = replace(
        f.AMPERE,
        measured=False,
        prior_order=(BFLOAT16, FLOAT16, FLOAT32),
        verdicts=tuple(replace(one, decode_bytes_per_s=None, prefill_flops_per_s=None) for one in f.AMPERE.verdicts),
    )
    plan = make_plan(unmeasured, f.checkpoint(BFLOAT16))
    assert plan.storage == BFLOAT16
    assert plan.cost is not None
    assert plan.cost.seconds is None
    assert "published facts" in plan.reason
    assert "Nobody measured" in plan.explain()


LEARNED = LearnedFailure(
    "qwen3", "VendorLinear.forward", "bfloat16", "cuda:0", "layer", "RuntimeError", "code 7\nmore", ("float32",)
)


@pytest.mark.parametrize(
    ("policy", "ordered", "storage", "words"),
    [
        pytest.param(SPEED, None, FLOAT32, ("in bfloat16 here", "Loading float32 instead"), id="around"),
        pytest.param(SPEED, BFLOAT16, BFLOAT16, ("bfloat16 was asked for", "anyway"), id="ordered"),
        pytest.param(SPEED, FLOAT32, FLOAT32, (), id="another-ordered"),
        pytest.param(Policy(mode="strict"), BFLOAT16, BFLOAT16, ("was asked for", "anyway"), id="strict-ordered"),
        pytest.param(Policy(mode="strict"), None, BFLOAT16, ("is loaded", "anyway"), id="strict"),
        pytest.param(Policy(ladder=(BFLOAT16,)), None, BFLOAT16, ("is loaded", "anyway"), id="no-other"),
    ],
)
def test_what_was_learned(policy: Policy, ordered: Dtype | None, storage: Dtype, words: tuple[str, ...]) -> None:
    """What failed in an earlier run is planned around, and an order is obeyed; both say why, and what to do."""
    checkpoint = replace(f.checkpoint(BFLOAT16), lessons=(LEARNED,))
    plan = make_plan(f.AMPERE, checkpoint, policy, ordered=ordered)
    assert plan.storage == storage
    assert len(plan.warnings) == bool(words)
    for word in (*words, "VendorLinear.forward raised RuntimeError: code 7.", "`safe-dtype doctor --refresh`"):
        assert not words or word in plan.warnings[0]


def test_what_was_learned_is_no_verdict() -> None:
    """The reason names the run that failed and not the device; what the device cannot is said as before."""
    plan = make_plan(f.AMPERE, replace(f.checkpoint(BFLOAT16), lessons=(LEARNED,)))
    (decision,) = [one for one in plan.decisions if one.ground is Ground.LEARNED]
    assert (
        decision.reason == "an earlier guarded run failed in it here: VendorLinear.forward raised RuntimeError: code 7"
    )
    assert "works here" not in plan.reason
    kills = make_plan(f.RDNA2, replace(f.checkpoint(BFLOAT16), lessons=(LEARNED,)), ordered=BFLOAT16)
    assert "cannot" in kills.warnings[0]
    assert not any("earlier" in warning for warning in kills.warnings)
