"""Which line of modelling code ends a graph, and what kind of obstacle it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from optimizing.zoo import ZOO
from optimizing.zoo_modules import Branch

from safe_dtype.optimizing.graphs import graph_breaks as breaks


@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_is_blamed_alike(strict: bool) -> None:
    """An error of torch.export names the same line: from its stack, or from the traceback of the model's own Python."""
    with pytest.raises(Exception, match=r"[Dd]ata-dependent") as caught:
        torch.export.export(Branch().eval(), (ZOO["branch"].inputs()["x"],), strict=strict)
    (site,) = breaks.sites_of(caught.value)
    assert (site.file, site.code) == ("optimizing/zoo_modules.py", "if y.sum() > 0:")
    assert site.kind == breaks.DATA_DEPENDENT


@pytest.mark.parametrize(
    ("text", "file", "line", "code", "kind"),
    [
        pytest.param(
            "Could not guard on data-dependent expression Eq(u0, 1).\n\n"
            "Caused by: if found:  # transformers/models/a/modeling_a.py:7 in forward (_dynamo/variables/tensor.py:1 in f)",
            "transformers/models/a/modeling_a.py", 7, "if found:", breaks.DATA_DEPENDENT, id="caused-by",
        ),
        pytest.param(
            "Dynamic control flow is not supported at the moment. Please use functorch.experimental.control_flow.cond\n\n"
            'from user code:\n   File "/x/lib/python3.9/site-packages/transformers/models/a/modeling_a.py", line 9, in forward\n'
            "    if x.sum() > 0:\n",
            "transformers/models/a/modeling_a.py", 9, "if x.sum() > 0:", breaks.DATA_DEPENDENT, id="torch-2.4",
        ),
        pytest.param(
            "call_function is marked as skipped: logging\n\nfrom user code:\n"
            '   File "/x/site-packages/transformers/models/a/modeling_a.py", line 3, in forward\n'
            '    logger.warning_once("slow")\n'
            '  File "/x/site-packages/transformers/utils/logging.py", line 5, in warning_once\n'
            "    self.warning(*args, **kwargs)\n",
            "transformers/models/a/modeling_a.py", 3, 'logger.warning_once("slow")', breaks.PYTHON_SIDE_EFFECT,
            id="log-call",
        ),
    ],
)  # fmt: skip
def test_text_alone(text: str, file: str, line: int, code: str, kind: str) -> None:
    """Where an error carries no stack, its text names the line."""
    (site,) = breaks.sites_of(RuntimeError(text))
    assert (site.file, site.line, site.code, site.kind) == (file, line, code, kind)
    assert site.reason == text.splitlines()[0]


def test_nobody_to_blame() -> None:
    """An error from outside of any model names no line, least of all the caller's."""
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2).view(3)
    assert breaks.sites_of(caught.value) == ()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation"),
            breaks.MISSING_OP,
        ),
        (RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : tensor(bfloat16) is invalid"), breaks.MISSING_OP),
        (TypeError("'NoneType' object is not subscriptable"), breaks.MODEL_BUG),
        (RuntimeError("Failed to find C++ compiler"), breaks.OTHER),
        ("generic_jump TensorVariable()", breaks.DATA_DEPENDENT),
        ("skip function log in file /x/logging/__init__.py", breaks.PYTHON_SIDE_EFFECT),
    ],
)
def test_kind(error: BaseException | str, kind: str) -> None:
    """An obstacle is classified by its type first, by its text second."""
    assert breaks.kind_of(error) == kind


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_the_interpreter_raised() -> None:
    """The reason of a trace that fails is what failed in it, and not that something did."""
    traced = torch.jit.trace(lambda x: x.view(2, 3), torch.ones(6))
    with pytest.raises(RuntimeError, match="failed in the TorchScript interpreter") as caught:
        traced(torch.ones(7))
    assert breaks.reason_of(caught.value) == "RuntimeError: shape '[2, 3]' is invalid for input of size 7"


def test_a_cause_is_classified() -> None:
    """An error that wraps another is of the other's kind."""
    error = RuntimeError("Failed to export the model")
    error.__cause__ = ValueError("Could not guard on data-dependent expression u0 > 1")
    assert breaks.kind_of(error) == breaks.DATA_DEPENDENT


@pytest.mark.needs("torch>=2.13")
def test_names_of_torch() -> None:
    """Every graph break that is classified by name is in torch's own registry of them."""
    registry = json.loads((Path(torch.__file__).parent / "_dynamo/graph_break_registry.json").read_text())
    known = {entry["Gb_type"].lower() for entries in registry.values() for entry in entries}
    assert set(breaks._GRAPH_BREAKS) <= known
