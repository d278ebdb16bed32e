"""A published variant in the dtype of the plan is said, and loaded only where the policy says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import AMPERE, checkpoint, drift
from huggingface_hub import constants
from publishing.client import connect, in_child
from publishing.loopback import LoopbackHub, drop, status, truncate
from tiny_models import TINY

from safe_dtype.errors import CheckpointError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.loading import Request
from safe_dtype.loading.published_variants import with_variant
from safe_dtype.planning import Plan, Policy, make_plan
from safe_dtype.publishing.staging.evidence import Base, Evidence, Fidelity, MeasuredOn

BASE, VARIANT = "base/model", "base/model-bf16"
OF_COMMIT = "0123456789" * 4

_LOAD = """
import logging, sys
import safe_dtype
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
model = safe_dtype.SafeAutoModel.from_pretrained("base/model", dtype="bfloat16", policy=sys.argv[1])
print(model.config._name_or_path, model.dtype)
"""


def evidence(
    base: str = BASE, dtype: str = "bfloat16", *, kl: float = 1.5e-4, needs: str | None = None, revision: str = OF_COMMIT
) -> dict[str, bytes]:  # fmt: skip
    """Return the `safe_dtype.json` of a variant, as publishing writes it."""
    ours = Fidelity("safe_dtype", dtype, dtype, drift(kl), 0, None)
    plain = Fidelity("transformers", dtype, dtype, drift(0.5), 0, None)  # not what safe_dtype will do
    measured_on = MeasuredOn("built-in text", "0" * 64, 512)
    found = Evidence(Base(base, revision), dtype, "Qwen3ForCausalLM", {}, ours, plain, 0.02, measured_on, needs=needs)
    return {"safe_dtype.json": json.dumps(found.to_dict()).encode()}


def plan_in(dtype: Dtype, policy: str = "", saved: Dtype = FLOAT32) -> Plan:
    """Return a plan to load the base in `dtype`."""
    plan = make_plan(AMPERE, checkpoint(saved), Policy.parse(policy), ordered=dtype)
    return replace(plan, source=BASE)


def replan(request: Request) -> Plan:
    """Return the plan for a variant, which was saved in bfloat16."""
    return replace(plan_in(BFLOAT16, "variants=use", saved=BFLOAT16), source=str(request.source))


def looked_for(plan: Plan, **arguments: Any) -> tuple[str, str | None]:
    """Return the repository and the revision that are loaded."""
    request, _ = with_variant(Request(BASE, arguments), plan, replan)
    return str(request.source), request.arguments.get("revision")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub with a base and its variant in bfloat16."""
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path)
        hub.push(BASE, {"config.json": b"{}"})
        hub.push(VARIANT, evidence())
        yield hub


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged of variants, down to debug."""
    caplog.set_level(logging.DEBUG, logger="safe_dtype.loading.published_variants")
    return caplog


def test_a_variant_is_said(hub: LoopbackHub, said: pytest.LogCaptureFixture) -> None:
    """By default one line names the repository, its dtype and drift, and the policy that loads it; nothing changes."""
    assert looked_for(plan_in(BFLOAT16, "prefer=memory")) == (BASE, None)
    assert [one.levelname for one in said.records] == ["INFO"]
    assert said.messages == [
        "base/model: published already as base/model-bf16 (bfloat16, made of commit 0123456; measured drift from "
        "float32: 0.00015 nats of mean KL); to load that, policy='auto,prefer=memory,variants=use'"
    ]
    assert hub.requests == [
        ("GET", "/api/models/base/model"), ("GET", "/base/model-bf16/resolve/main/safe_dtype.json"),
    ]  # fmt: skip


def test_a_variant_is_used(hub: LoopbackHub, said: pytest.LogCaptureFixture) -> None:
    """With `variants=use` it is loaded in place of the base, at the commit that was read, and a warning says so."""
    assert looked_for(plan_in(BFLOAT16, "variants=use")) == (VARIANT, hub.branches(VARIANT)["main"])
    assert [one.levelname for one in said.records] == ["WARNING"]
    assert said.messages[0].startswith(f"{BASE}: loading {VARIANT} (bfloat16")


def test_the_card_names_a_variant(hub: LoopbackHub) -> None:
    """What the base's card lists is looked at instead of a name that is like its own."""
    card = b"---\nsafe_dtype:\n  variants:\n    bfloat16: org/elsewhere\n---\n# Model\n"
    hub.push(BASE, {"README.md": card})
    hub.push("org/elsewhere", evidence())
    assert looked_for(plan_in(BFLOAT16, "variants=use"))[0] == "org/elsewhere"
    assert VARIANT not in str(hub.requests)


@pytest.mark.parametrize(
    ("plan", "arguments"),
    [
        pytest.param(plan_in(BFLOAT16, "variants=ignore"), {}, id="ignored"),
        pytest.param(plan_in(BFLOAT16, "variants=use", saved=BFLOAT16), {}, id="nothing-to-gain"),
        pytest.param(plan_in(FLOAT32, "variants=use", saved=FLOAT16), {}, id="float32"),
        pytest.param(plan_in(BFLOAT16, "variants=use"), {"local_files_only": True}, id="local-files-only"),
        pytest.param(plan_in(BFLOAT16, "variants=use"), {"subfolder": "unet"}, id="subfolder"),
        pytest.param(plan_in(BFLOAT16, "variants=use"), {"trust_remote_code": True}, id="code-of-the-repository"),
        pytest.param(
            replace(plan_in(BFLOAT16, "variants=use"), quantization="bitsandbytes"), {}, id="quantized"
        ),
    ],
)  # fmt: skip
def test_nothing_is_asked(hub: LoopbackHub, plan: Plan, arguments: dict[str, Any]) -> None:
    """No request is made where no variant could help, or none may be used."""
    assert looked_for(plan, **arguments) == (BASE, None)
    assert hub.requests == []


def test_nothing_is_asked_offline(
    hub: LoopbackHub, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline nothing is asked, nor tried."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert looked_for(plan_in(BFLOAT16, "variants=use")) == (BASE, None)
    assert hub.requests == []
    assert said.records == []


def test_nothing_is_asked_for_a_folder(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is called like a repository is a folder."""
    (tmp_path / BASE).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert looked_for(plan_in(BFLOAT16, "variants=use")) == (BASE, None)
    assert hub.requests == []


def test_nothing_is_asked_by_one_of_many(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that load one model together all load the same repository."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert looked_for(plan_in(BFLOAT16, "variants=use")) == (BASE, None)
    assert hub.requests == []


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(evidence(base="other/model"), id="of-another-base"),
        pytest.param(evidence(dtype="float16"), id="in-another-dtype"),
        pytest.param(evidence(kl=0.5), id="drifts-too-far"),
        pytest.param(evidence(kl=float("inf")), id="not-finite"),
        pytest.param(evidence(needs="another_library"), id="needs-something-else"),
        pytest.param({"safe_dtype.json": b'{"schema": "safe_dtype.variant/9"}'}, id="another-schema"),
        pytest.param({"safe_dtype.json": b'{"schema": "safe_dtype.variant/1", "base": 7}'}, id="another-shape"),
        pytest.param({"safe_dtype.json": b"[" * 100_000}, id="no-json"),
        pytest.param({"safe_dtype.json": b"\xff\xfe"}, id="no-text"),
    ],
)
def test_what_does_not_count(hub: LoopbackHub, said: pytest.LogCaptureFixture, files: dict[str, bytes]) -> None:
    """A repository of the right name counts only if its evidence is of this base, in this dtype, within the limit."""
    hub.push(VARIANT, files)
    for policy in ("variants=use", "variants=say"):
        assert looked_for(plan_in(BFLOAT16, policy)) == (BASE, None)
    assert not [one for one in said.records if one.levelno > logging.DEBUG]


@pytest.mark.parametrize("path", ["/api/models/", "safe_dtype.json$"])
@pytest.mark.parametrize(
    "fault",
    [status(500), status(404, error_code="RepoNotFound"), status(429, retry_after=60), drop, truncate],
    ids=str,
)
def test_a_failure_breaks_nothing(
    hub: LoopbackHub, said: pytest.LogCaptureFixture, path: str, fault: Any
) -> None:  # fmt: skip
    """Whatever the Hub does, the base is loaded as planned, after two requests at the most, and without a word."""
    hub.fault("GET", path, fault, times=10)
    assert looked_for(plan_in(BFLOAT16, "variants=use"), token=hub.token) == (BASE, None)
    assert len(hub.requests) <= 2
    assert [one.levelname for one in said.records] == ["DEBUG"]
    assert hub.token not in said.text


def test_a_hub_that_is_away_breaks_nothing(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers: the base is loaded as planned."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert looked_for(plan_in(BFLOAT16, "variants=use")) == (BASE, None)


def test_a_variant_without_a_plan(hub: LoopbackHub) -> None:
    """A variant that cannot be planned for, or would be loaded in another dtype, leaves everything as it was."""

    def no_plan(request: Request) -> Plan:
        raise CheckpointError(str(request.source), "has no weights")

    plan, request = plan_in(BFLOAT16, "variants=use"), Request(BASE, {})
    assert with_variant(request, plan, no_plan) == (request, plan)
    assert with_variant(request, plan, lambda _: plan_in(FLOAT32)) == (request, plan)


def test_a_revision_of_the_base(hub: LoopbackHub) -> None:
    """Who names a revision gets a variant that was made of that commit, or none."""
    plan, oid = plan_in(BFLOAT16, "variants=use"), hub.branches(BASE)["main"]
    assert looked_for(plan, revision=oid) == (BASE, oid)
    hub.push(VARIANT, evidence(revision=oid))
    assert looked_for(plan, revision=oid) == (VARIANT, hub.branches(VARIANT)["main"])


@pytest.mark.slow
def test_from_pretrained(tmp_path: Path) -> None:
    """`SafeAutoModel.from_pretrained` of the base loads the weights of the variant where the policy says so."""
    base, variant = (tmp_path / name for name in ("base", "variant"))
    TINY["qwen3"].save(base, torch.float32)
    TINY["qwen3"].save(variant, torch.bfloat16)
    with LoopbackHub() as hub:
        for repo, folder in ((BASE, base), (VARIANT, variant)):
            hub.push(repo, {one.name: one.read_bytes() for one in folder.iterdir()})
        oid = hub.push(VARIANT, evidence())
        done = in_child(hub, _LOAD, "variants=use")
        assert (
            f"WARNING safe_dtype.loading.published_variants {BASE}: loading {VARIANT} (bfloat16, made of commit"
            in done
        )
        assert done.splitlines()[-1] == f"{VARIANT} torch.bfloat16"
        assert ("HEAD", f"/{VARIANT}/resolve/{oid}/model.safetensors") in hub.requests
        assert ("HEAD", f"/{BASE}/resolve/{hub.branches(BASE)['main']}/model.safetensors") not in hub.requests
