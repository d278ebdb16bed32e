"""Files that mix formats: what each dtype rounds of them is known tensor by tensor, and told."""

from __future__ import annotations

import json
from dataclasses import replace

import factories as f
import pytest

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, CheckpointFacts, Dtype, MemoryFacts, TensorFacts
from safe_dtype.planning import Candidate, Ground, Policy, judge, make_plan
from safe_dtype.planning.mixed_dtypes import holds, is_kept, is_out_of_range, out_of_range, rounded_tensors

NORMS = tuple(
    TensorFacts(f"layers.{layer}.norm.weight", "float32", (1024,), "model.safetensors") for layer in range(36)
)


def mixed(saved: Dtype = BFLOAT16, *tensors: TensorFacts) -> CheckpointFacts:
    """Return a checkpoint in 16 bit with some tensors in another format, float32 norms unless others are passed."""
    checkpoint = f.checkpoint(saved)
    return replace(checkpoint, tensors=(*checkpoint.tensors, *(tensors or NORMS)))


def reason(dtype: Dtype, checkpoint: CheckpointFacts, policy: str = "auto") -> str:
    """Return what the judge says of a dtype."""
    return judge(Candidate(dtype, dtype), f.AMPERE, checkpoint, Policy.parse(policy)).reason


def test_which_are_rounded() -> None:
    """Tensors, bytes and kinds are counted; what the dtype holds is not among them."""
    rounded = rounded_tensors(BFLOAT16, mixed())
    assert rounded is not None
    assert (rounded.tensors, rounded.bytes, rounded.dtypes) == (36, 36 * 4096, ("float32",))
    assert rounded.all_tensors == len(mixed().tensors)
    assert rounded.kinds == ("layers.*.norm.weight",)
    assert rounded.names == "layers.*.norm.weight"
    assert str(rounded) == f"36 of {len(mixed().tensors)} tensors (147 kB in float32)"
    assert rounded_tensors(FLOAT32, mixed()) is None


def test_what_is_said() -> None:
    """Only a dtype that holds every tensor keeps every bit; the plan and its table tell the others."""
    assert reason(BFLOAT16, mixed()).startswith("rounds 36 of ")
    assert reason(FLOAT32, mixed()).startswith("keeps every bit of the weights")
    assert reason(BFLOAT16, f.checkpoint()).startswith("keeps every bit of the weights")
    plan = make_plan(f.AMPERE, mixed(), ordered=BFLOAT16)
    assert "Rounded to bfloat16 on loading: 36 of " in plan.explain(width=400)
    assert "layers.*.norm.weight" in plan.explain(width=400)
    assert json.loads(plan.to_json())["rounded"]["tensors"] == 36
    exact = make_plan(f.AMPERE, f.checkpoint(), ordered=BFLOAT16)
    assert exact.rounded is None
    assert "ounded to " not in exact.explain()


def test_few_do_not_keep_the_model_from_its_dtype() -> None:
    """A model of 16-bit weights is loaded in them though its norms are float32, as transformers loads it."""
    assert make_plan(f.AMPERE, mixed()).storage == BFLOAT16
    assert make_plan(f.AMPERE, mixed(), Policy.parse("prefer=fidelity")).storage == FLOAT32


def test_many_are_a_rounding_to_be_measured() -> None:
    """Where a good part of the numbers would be rounded, that is not done unasked."""
    half = tuple(replace(one, shape=(3072, 1024)) for one in NORMS)
    decision = judge(Candidate(BFLOAT16, BFLOAT16), f.AMPERE, mixed(BFLOAT16, *half), Policy())
    assert decision.ground is Ground.ROUNDING
    assert "36 of" in decision.reason
    assert "to 8 significant bits" in decision.reason
    decision = judge(Candidate(BFLOAT16, BFLOAT16), f.AMPERE, mixed(BFLOAT16, *half), Policy.parse("prefer=memory"))
    assert decision.accepted
    small = replace(f.AMPERE, memory=MemoryFacts(3 * 10**9, 2 * 10**9, "device"))
    assert judge(Candidate(BFLOAT16, BFLOAT16), small, mixed(BFLOAT16, *half), Policy()).accepted


def test_what_stays_in_float32() -> None:
    """What transformers keeps in float32 is not rounded."""
    checkpoint = replace(mixed(), keep_in_fp32_strict=("norm",))
    assert rounded_tensors(BFLOAT16, checkpoint) is None
    assert rounded_tensors(FLOAT16, replace(mixed(FLOAT16), keep_in_fp32=("norm",))) is None
    rounded = rounded_tensors(BFLOAT16, replace(mixed(), keep_in_fp32=("norm",)))  # that list is of float16 alone
    assert rounded is not None
    assert is_kept(NORMS[0], BFLOAT16, checkpoint)
    assert not is_kept(NORMS[0], FLOAT32, checkpoint)


@pytest.mark.parametrize(
    ("largest", "is_wide"), [(1e5, True), (65504.0, False), (0.0, False), (1e-6, True), (None, False)]
)
def test_values_beyond_float16(largest: float | None, is_wide: bool) -> None:
    """A tensor that float16 would make infinite, or lose, stays in float32; in strict mode float16 is not right."""
    norm = replace(NORMS[0], largest=largest)
    checkpoint = mixed(FLOAT16, norm)
    assert is_out_of_range(norm, FLOAT16) == is_wide
    assert out_of_range(FLOAT16, checkpoint) == ((norm,) if is_wide else ())
    assert (rounded_tensors(FLOAT16, checkpoint) is None) == is_wide
    assert (f"{norm.name} reaches" in reason(FLOAT16, checkpoint)) == is_wide
    assert judge(Candidate(FLOAT16, FLOAT16), f.AMPERE, checkpoint, Policy()).accepted
    strict = judge(Candidate(FLOAT16, FLOAT16), f.AMPERE, checkpoint, Policy.parse("strict"))
    assert (strict.ground is Ground.RANGE) == is_wide


@pytest.mark.parametrize(
    ("storage", "saved", "expected"),
    [
        (FLOAT32, "float64", False), (FLOAT32, "bfloat16", True), (BFLOAT16, "float16", False),
        (FLOAT16, "float8_e4m3fn", True), (BFLOAT16, "float8_e5m2", True),
    ],
)  # fmt: skip
def test_holds(storage: Dtype, saved: str, expected: bool) -> None:
    """Formats are known by torch's names, also those that nobody computes in."""
    assert holds(storage, saved) == expected
