"""A report as the text of an issue: what was learned, and nobody's folders."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding.generators import DOWN, tiny

from safe_dtype import SafeAutoModel, guard, plan_of, report
from safe_dtype.devices import facts_of
from safe_dtype.errors import NoDtypeLeft, StrictModeError
from safe_dtype.facts import MemoryFacts
from safe_dtype.guarding.diagnosis.learn import without_personal_paths
from safe_dtype.testing import fault

BF16 = torch.bfloat16
IDS = torch.arange(3, 9)[None]


def test_as_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the versions, the text, the trials and the events."""
    monkeypatch.setenv("HOME", "/home/ada")
    model = guard(tiny())

    def fail(module: Any, args: Any) -> None:
        if module.weight.dtype == BF16:
            raise KeyError("/home/ada/kernels/half.so: opcode 7")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    model(input_ids=IDS)
    text = report(model).as_issue()
    assert f"- torch {version('torch')}" in text
    assert "### KeyError in Linear.fail (`model.layers.1.mlp.down_proj`)" in text
    assert "~/kernels/half.so: opcode 7" in text
    assert "- model.layers.1.mlp.down_proj in float32: passed" in text
    assert "- works in: float32" in text
    assert "step 0: op_unsupported" in text
    assert "~/kernels/half.so: opcode 7" in text.partition("### Events")[2]
    assert "ada" not in text


def test_nothing_learned() -> None:
    """Without a plan and anything learned there are the versions and the device alone."""
    text = report(guard(tiny())).as_issue()
    assert text.startswith("**Qwen3ForCausalLM** in bfloat16")
    assert text.splitlines()[-1].startswith(f"- cpu: {facts_of('cpu').name}")
    assert "###" not in text


def test_plan(tiny_qwen3: Path) -> None:
    """Of a model that was planned it says where, why, and what of every candidate, in one screen."""
    model = SafeAutoModel.from_pretrained(tiny_qwen3)
    text = report(model).as_issue()
    plan = plan_of(model)
    assert f" in {plan.what} on {plan.where}: {plan.reason}\n" in text
    assert all(f"- {decision.candidate}: " in text for decision in plan.decisions)
    assert len(text.splitlines()) < 40


def test_no_device_of_this_machine() -> None:
    """A model without memory is on no device that has a name."""
    assert report(guard(tiny().to("meta"))).as_issue().splitlines()[-1] == "- meta"


def test_known_texts_teach_nothing() -> None:
    """What a text tells already is not learned."""
    model = guard(tiny())

    def fail(module: Any, args: Any) -> None:
        if module.weight.dtype == BF16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    model(input_ids=IDS)
    assert report(model).learned == ()


def test_texts_of_events() -> None:
    """An event has the text of its failure, one that is known too."""
    model = guard(tiny())
    with fault(model, DOWN, "cublas"):
        model(input_ids=IDS)
    assert "CUBLAS_STATUS_NOT_SUPPORTED" in report(model).as_issue()


def test_long_trials_end_in_an_ellipsis() -> None:
    """A trial's outcome that was cut says so."""
    model = guard(tiny())

    def fail(module: Any, args: Any) -> None:
        if module.weight.dtype == BF16:
            raise KeyError("long " * 80)

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    model(input_ids=IDS)
    (failure,) = report(model).learned
    assert any(trial.endswith("…") for trial in failure.trials)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("no /home/ada/x.so here", "no ~/x.so here"),
        ("/Users/ada/Library/x", "~/Library/x"),
        ("C:\\Users\\ada\\x.dll", "~\\x.dll"),
        ("token hf_abcXYZ012 there", "token hf_*** there"),
        ("nothing personal", "nothing personal"),
    ],
)
def test_personal_paths(text: str, clean: str) -> None:
    """Folders of users are replaced, on every system."""
    assert without_personal_paths(text) == clean


def test_folders_whose_names_begin_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only whole names of folders are replaced: what begins as one of yours stays a path."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", "/data/ann")
    assert without_personal_paths("/data/anna/x, /data/ann-2/x, /data/ann/x, /data/ann") == (
        "/data/anna/x, /data/ann-2/x, ~/x, ~"
    )
    there = str(tmp_path / "work")
    assert without_personal_paths(f"{there}space/x, {there}/x, '{there}'") == f"{there}space/x, ./x, '.'"
    assert without_personal_paths("-I/data/ann/x") == "-I~/x"
    assert without_personal_paths("in /data/ann.") == "in ~."


@pytest.mark.parametrize("policy", ["strict", "auto"])
def test_calls_that_were_not_cured(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In strict mode, and with no dtype left, the error that ended a call is in the report, once for equal ones."""
    model = guard(tiny(), policy=policy)
    monkeypatch.setattr("safe_dtype.devices.memory.memory_of", lambda device: MemoryFacts(2000, 1000, "test"))
    with fault(model, DOWN, "cublas"):
        texts = []
        for _ in range(2):
            with pytest.raises((StrictModeError, NoDtypeLeft)) as caught:
                model(input_ids=IDS)
            texts.append(str(caught.value))
    refusals = report(model).refusals
    assert refusals == tuple(dict.fromkeys(texts))
    assert report(model).events == ()
    assert "CUBLAS_STATUS_NOT_SUPPORTED" in report(model).as_issue().partition("### Calls that were not cured")[2]
    assert "ended a call: " in str(report(model))


def test_errors_that_no_dtype_cures() -> None:
    """An error that came through to the caller is in the report with its class, and what another model raised is not."""
    model, other = guard(tiny()), guard(tiny())

    def fail(module: Any, args: Any) -> None:
        raise RuntimeError("kaputt")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="kaputt"):
        model.generate(input_ids=IDS, max_new_tokens=2, do_sample=False)
    assert report(model).refusals == ("RuntimeError: kaputt",)
    assert "RuntimeError: kaputt" in report(model).as_issue().partition("### Calls that were not cured")[2]
    assert report(other).refusals == ()


def test_a_way_out_is_no_error() -> None:
    """How a caller leaves a forward early on purpose is not in the report."""
    model = guard(tiny())

    class StopForward(Exception):  # noqa: N818  (as programs call it)
        pass

    def leave(module: Any, args: Any) -> None:
        raise StopForward

    model.get_submodule(DOWN).register_forward_pre_hook(leave)
    with pytest.raises(StopForward):
        model(input_ids=IDS)
    assert report(model).refusals == ()
