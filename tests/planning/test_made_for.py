"""What a plan was made for, and what contradicts that: facts in, contradictions out."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import factories as f
import pytest

from safe_dtype.facts import FLOAT32, CheckpointFacts, CheckpointIdentity, DeviceFacts
from safe_dtype.planning import MadeFor, combine, make_plan

IDENTITY = CheckpointIdentity("names", "samples", None)
CHECKPOINT = replace(f.checkpoint(), source="here", identity=IDENTITY, versions=(("transformers", "5.23"),))
A100 = replace(
    f.AMPERE, vendor="nvidia", family="Ampere", driver="550.1", versions=(("python", "3.11"), ("torch", "2.13")),
    settings=(("float32_matmul_precision", "highest"), ("threads", "2")),
)  # fmt: skip
CPU = replace(A100, device="cpu", name="AMD EPYC", vendor="cpu", family="Zen", driver="")
PRIOR = replace(f.AMPERE, device="NVIDIA A100", vendor="nvidia", family="Ampere", measured=False)


def identity(**changes: Any) -> CheckpointFacts:
    """Return the checkpoint with another identity, read from another place."""
    return replace(CHECKPOINT, source="there", identity=replace(IDENTITY, **changes))


def setting(**values: str) -> tuple[tuple[str, str], ...]:
    """Return the settings with others in their place, or beside them."""
    return tuple(sorted({**dict(A100.settings), **values}.items()))


def subjects(
    device: DeviceFacts, checkpoint: CheckpointFacts, *, planned: DeviceFacts, of: CheckpointFacts
) -> list[str]:
    """Return what contradicts, by name."""
    made = make_plan(planned, of).made_for
    assert made is not None
    return [one.what for one in made.contradictions(MadeFor.of(checkpoint).on(device))]


@pytest.mark.parametrize(
    ("checkpoint", "of", "what"),
    [
        pytest.param(CHECKPOINT, CHECKPOINT, [], id="the-same"),
        pytest.param(identity(), CHECKPOINT, [], id="a-copy-elsewhere"),
        pytest.param(identity(commit="a" * 40), CHECKPOINT, [], id="by-repository"),
        pytest.param(identity(contents=None, commit="a" * 40), CHECKPOINT, [], id="by-repository-not-here-yet"),
        pytest.param(replace(CHECKPOINT, identity=None), CHECKPOINT, [], id="weights-in-memory"),
        pytest.param(CHECKPOINT, replace(CHECKPOINT, identity=None), [], id="planned-without"),
        pytest.param(replace(CHECKPOINT, quantization="bitsandbytes"), CHECKPOINT, [], id="quantized-on-load"),
        pytest.param(identity(tensors="others"), CHECKPOINT, ["checkpoint"], id="other-tensors"),
        pytest.param(identity(contents="others"), CHECKPOINT, ["checkpoint"], id="trained-on"),
        pytest.param(
            identity(contents=None, commit="a" * 40), identity(contents=None, commit="b" * 40), ["checkpoint"], id="moved-main"
        ),
        pytest.param(identity(commit="a" * 40), identity(commit="b" * 40), [], id="a-commit-that-changes-no-weights"),
        pytest.param(
            identity(contents=None, blobs="1", commit="a" * 40), identity(blobs="1", commit="b" * 40), [],
            id="the-same-blobs",
        ),
        pytest.param(
            identity(contents=None, blobs="1", commit="a" * 40), identity(blobs="2", commit="b" * 40), ["checkpoint"],
            id="other-blobs",
        ),
        pytest.param(
            replace(identity(contents=None, commit="a" * 40), source="org/copy"),
            identity(contents=None, commit="b" * 40), [], id="another-repository",
        ),
    ],
)  # fmt: skip
def test_checkpoint(checkpoint: CheckpointFacts, of: CheckpointFacts, what: list[str]) -> None:
    """Other content contradicts; another path, a copy, and what nobody knows do not."""
    assert subjects(A100, checkpoint, planned=A100, of=of) == what


@pytest.mark.parametrize(
    ("device", "planned", "what"),
    [
        pytest.param(A100, A100, [], id="the-same"),
        pytest.param(replace(A100, device="cuda:3", memory=f.TURING.memory), A100, [], id="another-rank"),
        pytest.param(combine([A100, replace(A100, device="cuda:1")]), A100, [], id="two-of-them"),
        pytest.param(A100, combine([A100, replace(A100, device="cuda:1")]), [], id="one-of-them"),
        pytest.param(replace(A100, name="H100", family="Hopper"), A100, ["device"], id="another-product"),
        pytest.param(combine([A100, replace(A100, name="T4")]), A100, ["device"], id="a-weaker-one-beside"),
        pytest.param(CPU, A100, ["device"], id="cpu"),
        pytest.param(A100, f.AMPERE, [], id="facts-made-by-hand"),
        pytest.param(replace(A100, driver="570.2"), A100, ["driver"], id="driver"),
        pytest.param(replace(A100, versions=(("torch", "2.14"),)), A100, ["version"], id="torch"),
        pytest.param(replace(A100, versions=(("python", "3.12"), ("torch", "2.13"))), A100, [], id="python"),
        pytest.param(
            replace(A100, settings=setting(float32_matmul_precision="medium")), A100,
            ["setting"], id="precision",
        ),
        pytest.param(
            replace(A100, settings=setting(NVIDIA_TF32_OVERRIDE="0")), A100, ["setting"], id="new"
        ),
        pytest.param(
            replace(A100, settings=setting(threads="1", OMP_NUM_THREADS="1", cpu_capability="AVX2")), A100, [],
            id="threads-of-a-rank-beside-a-gpu",
        ),
        pytest.param(replace(CPU, settings=setting(threads="1", OMP_NUM_THREADS="1")), CPU, [], id="ranks-on-a-cpu"),
        pytest.param(replace(CPU, settings=setting(CUBLAS_WORKSPACE_CONFIG=":4096:8")), CPU, [], id="of-a-gpu"),
        pytest.param(replace(CPU, settings=setting(cpu_capability="AVX2")), CPU, ["setting"], id="kernels-of-a-cpu"),
        pytest.param(
            replace(A100, settings=setting(CUDA_LAUNCH_BLOCKING="1", PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")),
            A100, [], id="times-alone",
        ),
        pytest.param(replace(A100, name="NVIDIA A100-SXM4-80GB"), PRIOR, [], id="the-device-of-a-prior"),
        pytest.param(CPU, PRIOR, ["device"], id="prior-on-a-cpu"),
        pytest.param(replace(A100, family="Turing"), PRIOR, ["device"], id="prior-of-another-family"),
    ],
)  # fmt: skip
def test_device(device: DeviceFacts, planned: DeviceFacts, what: list[str]) -> None:
    """Another product and other kernels contradict; another device of the same product does not."""
    assert subjects(device, CHECKPOINT, planned=planned, of=CHECKPOINT) == what


def test_other_transformers() -> None:
    """The versions of transformers and safe_dtype are kept, and contradict nothing."""
    other = replace(CHECKPOINT, versions=(("safe_dtype", "9"), ("transformers", "6")))
    assert subjects(A100, other, planned=A100, of=CHECKPOINT) == []
    made = make_plan(A100, CHECKPOINT).made_for
    assert made is not None
    assert dict(made.versions) == {"python": "3.11", "torch": "2.13", "transformers": "5.23"}


def test_travels() -> None:
    """A plan goes to another process whole; as JSON it says what it was made for; a changed plan is for the same."""
    plan = make_plan(A100, CHECKPOINT)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(plan) == hash(pickle.loads(pickle.dumps(plan)))
    assert json.loads(plan.to_json())["made_for"]["devices"] == ["A100"]
    assert replace(plan, storage=FLOAT32).made_for == plan.made_for
