"""Which forms are tried, and in which order, follows from facts alone."""

from __future__ import annotations

import pytest

from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype
from safe_dtype.optimizing.attempts.diagnosis import Diagnosis
from safe_dtype.optimizing.forms import form_named
from safe_dtype.optimizing.nouns.form import Form, FormTarget
from safe_dtype.optimizing.nouns.record import BreakSite, FormAttempt, Outcome
from safe_dtype.optimizing.order import Known, Rung, forms_to_try, rungs_of

HERE = {
    "compiler": {"name": "g++", "version": "12"},
    "packages": dict.fromkeys(("triton", "onnx", "onnxscript", "onnxruntime"), "1"),
    "python": "3.11.7",
}
WHOLE = Diagnosis("done", whole=True)
LINE = BreakSite("transformers/models/dbrx/modeling_dbrx.py", 295, "for expert_idx in expert_hit:", "why", "kind")
BROKEN = Diagnosis("done", whole=False, reason="Data-dependent branching", sites=(LINE,))


def rungs(
    form: str, diagnosis: Diagnosis, dtype: Dtype = FLOAT32, tried: tuple[FormAttempt, ...] = ()
) -> tuple[Rung, ...]:
    """Return the rungs on a CPU that lacks nothing."""
    return rungs_of(form_named(form), dtype, Known(diagnosis, FormTarget(HERE)), tried)


@pytest.mark.parametrize("form", ["export", "aoti", "onnx", "compile"])
def test_one_graph(form: str) -> None:
    """A model that captures whole is tried in every form of one graph."""
    assert rungs(form, WHOLE) == (Rung(form, FLOAT32),)


@pytest.mark.parametrize("form", ["regional", "partial"])
def test_pieces_are_for_the_broken(form: str) -> None:
    """What captures whole is not compiled in pieces."""
    assert rungs(form, WHOLE)[0].skip == "the model captures as one graph"


@pytest.mark.parametrize("form", ["aoti", "onnx", "compile"])
def test_no_graph(form: str) -> None:
    """A model that does not capture skips these with the line to blame; torch.export captures in another way."""
    assert rungs(form, BROKEN)[0].skip == (
        "the model does not capture as one graph: Data-dependent branching at "
        "transformers/models/dbrx/modeling_dbrx.py:295 `for expert_idx in expert_hit:`"
    )
    assert not rungs("export", BROKEN)[0].skip


def test_export_opens_the_way() -> None:
    """Where torch.export succeeds all the same, the forms that start from its program are tried, torch.compile not."""
    exported = (FormAttempt("export", FLOAT32, Outcome.VERIFIED),)
    assert not rungs("aoti", BROKEN, tried=exported)[0].skip
    assert not rungs("onnx", BROKEN, tried=exported)[0].skip
    assert rungs("compile", BROKEN, tried=exported)[0].skip


def test_remedy() -> None:
    """A remedy that makes it capture goes with every form of one graph."""
    healed = Diagnosis("done", whole=False, remedies=("experts_implementation=batched_mm",))
    assert rungs("aoti", healed) == (Rung("aoti", FLOAT32, ("experts_implementation=batched_mm",)),)


def test_regions_are_cut_twice() -> None:
    """Where values decide how some regions are called, both cuts are tried: time decides."""
    cut = Diagnosis("done", whole=False, regions=("a",), varying=("b",), coverage=0.1, coverage_varying=0.9)
    assert [(one.regions, one.coverage) for one in rungs("regional", cut)] == [(("a",), 0.1), (("a", "b"), 0.9)]


def test_no_region() -> None:
    """Without a region there is nothing to compile."""
    assert rungs("regional", BROKEN)[0].skip == "no submodule captures whole"


def test_float32_shows_first() -> None:
    """A form that is wrong in float32 is not tried in 16 bit, where rounding would hide it."""
    wrong = (FormAttempt("export", FLOAT32, Outcome.WRONG, "off by 1e-2"),)
    assert rungs("export", WHOLE, BFLOAT16, wrong)[0].skip == "not verified in float32: wrong: off by 1e-2"
    right = (FormAttempt("export", FLOAT32, Outcome.VERIFIED),)
    assert not rungs("export", WHOLE, BFLOAT16, right)[0].skip


def test_what_is_missing() -> None:
    """Without a compiler native code is not tried, with what is missing as the reason."""
    (found,) = rungs_of(form_named("aoti"), FLOAT32, Known(WHOLE, FormTarget(HERE | {"compiler": None})), ())
    assert found.skip == "it needs a C++ compiler"


def test_made_by_others() -> None:
    """What another tool exports is tried whether or not the model captures here: it captures in its own way."""
    known = Known(BROKEN, FormTarget(HERE), by_others=frozenset({"onnx"}))
    assert rungs_of(form_named("onnx"), FLOAT32, known, ()) == (Rung("onnx", FLOAT32),)


def names(forms: tuple[Form, ...]) -> list[str]:
    """Return the names of forms."""
    return [form.name for form in forms]


def test_a_trace_is_asked_for() -> None:
    """TorchScript is the last, and only where it is allowed."""
    assert "torchscript" not in names(forms_to_try(None, torchscript=False))
    assert names(forms_to_try(None, torchscript=True))[-1] == "torchscript"


def test_what_was_asked_for_is_first() -> None:
    """The form that is wanted comes right after eager; the others follow, in case it fails."""
    found = forms_to_try("compile", torchscript=False)
    assert names(found)[:2] == ["eager", "compile"]
    assert len(found) == len(set(found)) == len(forms_to_try(None, torchscript=False))


def test_generate_is_tried_alone() -> None:
    """Forms for calls are no second choice for `generate`, and it is tried only where it is asked for."""
    assert names(forms_to_try("generate", torchscript=True)) == ["eager", "generate"]
    assert "generate" not in names(forms_to_try(None, torchscript=True))
