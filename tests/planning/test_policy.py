"""The short form of a policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from safe_dtype.errors import PolicyError
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.planning import Policy, Workload


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        pytest.param("", Policy(), id="empty"),
        pytest.param("auto", Policy(), id="auto"),
        pytest.param("strict", Policy(mode="strict"), id="strict"),
        pytest.param("auto,prefer=memory", Policy(prefer="memory"), id="prefer"),
        pytest.param(" strict , prefer=fidelity ", Policy(mode="strict", prefer="fidelity"), id="spaces"),
        pytest.param("prompt=64,new=8", Policy(workload=Workload(64, 8)), id="workload"),
        pytest.param("new=0", Policy(workload=Workload(512, 0)), id="no-new-tokens"),
        pytest.param("max_drift=1e-3", Policy(max_drift=0.001), id="max-drift"),
        pytest.param("max_drift=0", Policy(max_drift=0.0), id="no-drift"),
        pytest.param("variants=use", Policy(variants="use"), id="variants"),
        pytest.param("recipes=use", Policy(recipes="use"), id="recipes"),
        pytest.param("recipes=org/my-recipes", Policy(recipes="org/my-recipes"), id="recipes-of"),
        pytest.param("ladder=bf16>float32", Policy(ladder=(BFLOAT16, FLOAT32)), id="ladder"),
    ],
)
def test_parse(text: str, policy: Policy) -> None:
    """Every word of the short form is read, and printing gives it back."""
    assert Policy.parse(text) == policy
    assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("fast", "'fast' is none of", id="unknown-word"),
        pytest.param("strict=yes", "'strict' is none of", id="value-where-none-belongs"),
        pytest.param("prefer=cheap", "'cheap' is none of speed, memory, fidelity", id="prefer"),
        pytest.param("variants=all", "'all' is none of say, use, ignore", id="variants"),
        pytest.param("recipes=yes", "neither ignore, use nor org/name", id="recipes-of-nobody"),
        pytest.param("recipes=https://x.y/a", "neither ignore, use nor org/name", id="recipes-address"),
        pytest.param("recipes=../../a", "neither ignore, use nor org/name", id="recipes-path"),
        pytest.param("prompt=-3", "not a number of tokens", id="negative"),
        pytest.param("prompt=0", "not a number of tokens", id="zero"),
        pytest.param("max_drift=low", "max_drift='low' is not a number", id="drift-of-words"),
        pytest.param("max_drift=-1", "not a number from 0 on", id="negative-drift"),
        pytest.param("max_drift=nan", "not a number from 0 on", id="drift-of-nan"),
        pytest.param("max_drift=inf", "not a number from 0 on", id="endless-drift"),
        pytest.param("ladder=bf17", "no dtype is called 'bf17'", id="unknown-dtype"),
        pytest.param("ladder=int8", "no model computes in int8", id="storage-format"),
        pytest.param("ladder=bf16>bfloat16", "twice", id="twice"),
        pytest.param("int8,int4", "rounded to one of them", id="two-codes"),
        pytest.param("strict,int4", "strict changes nothing, and int4 rounds", id="strict-codes"),
    ],
)
def test_bad_policy(text: str, problem: str) -> None:
    """A word that cannot be read is an error that names it."""
    with pytest.raises(PolicyError, match=problem):
        Policy.parse(text)


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("fast", "prefer=speed"),
        ("memory", "prefer=memory"),
        ("prefr=speed", "prefer=speed"),
        ("prefer=memry", "prefer=memory"),
        ("prefer=fast", "prefer=speed"),
        ("prefer=cheap", "prefer=speed"),
        ("mode=strict", "strict"),
        ("strct", "strict"),
        ("strict=yes", "strict"),
        ("prompt=4k", "prompt=512"),
        ("new=many", "new=128"),
        ("ladder=fp16>fp33", "ladder=bf16>fp32"),
        ("ladder=int8", "ladder=bf16>fp32"),
        ("max_drift=abc", "max_drift=0.02"),
        ("maxdrift=0.1", "max_drift=0.02"),
        ("quick", "auto,prefer=memory"),
        ("int_4", "int4"),
        ("strict,int4", "auto,int4"),
        ("fp16", "ladder=fp16>fp32"),
        ("bf16", "ladder=bf16>fp32"),
        ("float32", "ladder=float32"),
        ("dtype=fp16", "ladder=fp16>fp32"),
        ("8bit", "int8"),
        ("load_in_8bit=True", "int8"),
        ("prefer=int4", "int4"),
        ("ladder=fp16,fp32", "ladder=fp16>fp32"),
        ("ladder=bf16,fp16,fp32,islands", "ladder=bf16>fp16>fp32"),
    ],
)
def test_advice(text: str, example: str) -> None:
    """The error shows what the key takes, or the word that is close; what it shows can be read."""
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text)
    assert str(caught.value).endswith(f"Next: write it like {example!r}.")
    Policy.parse(example)


def test_default_drift_is_not_said() -> None:
    """The short form names the limit of the drift only where it is not the default."""
    assert "max_drift" not in str(Policy())
    assert str(Policy(max_drift=0.5)) == "auto,prefer=speed,max_drift=0.5"


def test_default_of_variants_is_not_said() -> None:
    """The short form names what is done about published variants only where that is not the default."""
    assert str(Policy(variants="say")) == "auto,prefer=speed"
    assert str(Policy(variants="ignore")) == "auto,prefer=speed,variants=ignore"


@pytest.mark.parametrize(
    "fields",
    [{"prefer": "fast"}, {"mode": "lax"}, {"variants": "all"}, {"max_drift": -1.0}, {"max_drift": float("nan")}],
    ids=str,
)
def test_fields_are_checked_as_words_are(fields: dict[str, Any]) -> None:
    """A value that the short form refuses is refused as a field, and by `replace`."""
    with pytest.raises(PolicyError, match="Next: "):
        Policy(**fields)
    with pytest.raises(PolicyError):
        replace(Policy(), **fields)


@pytest.mark.parametrize(
    ("word", "example"),
    [
        ("int8", "Policy(int8=True)"),
        ("8bit", "Policy(int8=True)"),
        ("fp16", "Policy.parse('ladder=fp16>fp32')"),
        ("strict", "Policy.parse('strict')"),
        ("fast", "prefer=speed"),
    ],
)
def test_a_word_as_the_first_field(word: str, example: str) -> None:
    """`Policy("int8")` sets `prefer`: the error shows how the word is given."""
    with pytest.raises(PolicyError) as caught:
        Policy(word)  # type: ignore[arg-type]
    assert str(caught.value).endswith(f"Next: write it like {example!r}.")


def test_of() -> None:
    """A policy may be given as it is, as text, or not at all; anything else is an error that says so."""
    assert Policy.of(None) is None
    assert Policy.of("strict") == Policy.of(Policy(mode="strict")) == Policy(mode="strict")
    with pytest.raises(PolicyError, match="int is neither a Policy nor a text"):
        Policy.of(5)  # type: ignore[arg-type]
