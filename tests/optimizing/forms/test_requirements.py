"""What a form needs is said once, on the form: whoever asks gets the same answer."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from safe_dtype.errors import EnvironmentNotFitError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.optimizing import optimize
from safe_dtype.optimizing.attempts.diagnosis import Diagnosis
from safe_dtype.optimizing.dry_run import dry_run
from safe_dtype.optimizing.environment import environment
from safe_dtype.optimizing.forms import form_named, form_names
from safe_dtype.optimizing.nouns.form import FormTarget
from safe_dtype.optimizing.nouns.goal import Goal
from safe_dtype.optimizing.nouns.record import FormAttempt, Optimization, Outcome
from safe_dtype.optimizing.order import Known, rungs_of
from safe_dtype.optimizing.serving.compatibility import misfit

MODEL = str(Path(__file__).resolve().parents[3] / "examples" / "tiny-qwen3")
CAPTURES, BREAKS = Diagnosis("done", whole=True), Diagnosis("done", whole=False, regions=("a",))
OWN = ("aoti", "compile", "eager", "export", "generate", "onnx", "partial", "regional", "torchscript")
COMPILED = ("aoti", "compile", "generate", "partial", "regional")
ONNX = ("onnx", "onnxscript", "onnxruntime")
OF_INDUCTOR = {"Darwin": "clang++"}.get(platform.system(), "g++")  # what it starts where CXX is not set


def facts(*, python: str = "3.12.1", compiler: bool = True, absent: tuple[str, ...] = (), capability: str = "9.0") -> dict[str, Any]:  # fmt: skip
    """Return an environment."""
    packages = dict.fromkeys((*ONNX, "triton", "torch"), "1.0") | dict.fromkeys(absent)
    return {
        "python": python, "compiler": {"name": "g++", "version": "12"} if compiler else None, "packages": packages,
        "gpus": [{"name": "a GPU", "capability": capability, "bytes": 1}],
    }  # fmt: skip


def needed(form: str, dtype: Dtype, device: str, compiler: bool, absent: tuple[str, ...]) -> str:
    """Return what is missing, by the words of the documentation."""
    if form in COMPILED and not compiler:
        return "a C++ compiler"
    if form in COMPILED and device == "cuda:0" and "triton" in absent:
        return "the package triton"
    if form == "onnx":
        if lacks := [name for name in ONNX if name in absent]:
            return f"the package{'s' * (len(lacks) > 1)} {', '.join(lacks)}"
        if device == "mps":
            return "another device than mps: no provider of onnxruntime for it is known"
        if dtype == BFLOAT16:
            return "another dtype: onnxruntime has no bfloat16 kernels on the CPU, and numpy has no such dtype to pass"
    return ""


def asked_by_all(form: str, target: FormTarget) -> set[str]:
    """Return the answers of all who ask whether a form can be made on `target`; one where they agree."""
    made = form_named(form)
    known = Known(BREAKS if form in ("regional", "partial") else CAPTURES, target)
    rungs = rungs_of(made, target.dtype, known, ())
    return {made.missing_to_build(target), *(rung.skip.removeprefix("it needs ") for rung in rungs)}


MACHINES = list(
    product(
        (FLOAT32, BFLOAT16, FLOAT16),
        ("cpu", "cuda:0", "mps"),
        (True, False),  # a compiler
        ((), ("onnx", "onnxruntime"), ("triton",), ONNX),  # what is absent
    )
)


@pytest.mark.parametrize("form", OWN)
def test_every_form(form: str) -> None:
    """Every form names what it needs and has not, on every machine; the ladder skips it with that reason."""
    wrong = {}
    for dtype, device, compiler, absent in MACHINES:
        missing = needed(form, dtype, device, compiler, absent)
        if form == "onnx" and device == "cuda:0" and not missing:
            continue  # asks the onnxruntime that is installed: see test_provider
        answers = asked_by_all(form, FormTarget(facts(compiler=compiler, absent=absent), device, dtype))
        if answers != {missing}:
            wrong[dtype.name, device, compiler, absent] = (answers, missing)
    assert wrong == {}


@pytest.mark.parametrize("form", COMPILED)
def test_old_gpu(form: str) -> None:
    """A GPU that triton refuses gets no compiled form; which GPU it is, the device says."""
    old = FormTarget(facts(capability="6.1"), "cuda:0")
    assert form_named(form).missing_to_build(old) == "a GPU of compute capability 7.0 or more"
    assert form_named(form).missing_to_build(FormTarget(facts(capability="7.0"), "cuda")) == ""


@pytest.mark.parametrize(("python", "missing"), [("3.13.9", ""), ("3.14.0rc1", "a Python older than 3.14")])
def test_trace(python: str, missing: str) -> None:
    """TorchScript ends with Python 3.14, to be made and to be loaded."""
    form, target = form_named("torchscript"), FormTarget(facts(python=python))
    assert form.missing_to_build(target) == form.missing(target)
    assert form.missing(target).partition(",")[0] == missing


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_provider() -> None:
    """On a GPU, ONNX needs an onnxruntime that has a provider for it."""
    import onnxruntime

    has = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    missing = form_named("onnx").missing_to_build(FormTarget(facts(), "cuda:0"))
    assert missing == ("" if has else "an onnxruntime with CUDAExecutionProvider")


@pytest.mark.parametrize(
    ("form", "absent", "compiler"),
    [("onnx", ("onnx", "onnxscript"), True), ("aoti", (), False), ("export", ONNX, False)],
)
def test_to_load_takes_less(form: str, absent: tuple[str, ...], compiler: bool) -> None:
    """What only the maker of a file needs is not asked of those who load it."""
    assert form_named(form).missing(FormTarget(facts(absent=absent, compiler=compiler))) == ""


@pytest.fixture(params=["g++", "clang++", "none"])
def only(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine whose only C++ compiler has this name."""
    if platform.system() == "Windows":
        pytest.skip("cl is not chosen by a name in a folder of ours")
    if request.param != "none":
        compiler = tmp_path / str(request.param)
        compiler.write_text(f"#!/bin/sh\necho '{request.param} (a Linux) 17.4.2'\n")
        compiler.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return str(request.param)


def test_one_answer(only: str, tmp_path: Path) -> None:
    """Dry run, preflight, ladder and load agree on a compiler that inductor does not start by itself."""
    missing = "" if only == OF_INDUCTOR else "a C++ compiler"
    made = FormTarget(environment())
    forms = {form.name: lacks.get(FLOAT32, "") for form, lacks in dry_run(MODEL, Goal(device="cpu")).rungs}
    attempt = FormAttempt("compile", FLOAT32, Outcome.VERIFIED)
    record = Optimization("tiny", "", "cpu", "auto", "auto", "float32", environment=dict(made.environment))
    answers = asked_by_all("compile", made) | {forms["compile"]}
    answers.add(misfit(record, attempt, "cpu").removeprefix("it needs "))
    assert answers == {missing}
    if missing:
        with pytest.raises(EnvironmentNotFitError, match=r"a C\+\+ compiler"):
            optimize(MODEL, out=tmp_path / "out", form="compile", device="cpu")
        assert not (tmp_path / "out").exists()


def test_dry_run_says_in_which_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that is there, but not in every dtype, is told so."""
    pytest.importorskip("onnxscript")
    text = dry_run(MODEL, Goal(device="cpu", dtype=BFLOAT16)).as_text()
    assert "for onnxruntime, on any machine; not in bfloat16: it needs another dtype: " in text


def test_own_forms() -> None:
    """Every module of the folder is one form, and carries its name."""
    assert form_names()[: len(OWN)] == OWN
    assert [form_named(name).name for name in OWN] == list(OWN)
    with pytest.raises(ValueError, match="There is no form 'magic'; installed are aoti, compile"):
        form_named("magic")
