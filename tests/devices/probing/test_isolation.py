"""Child processes that really segfault, abort, hang and exit, and the process that survives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_dtype.devices import measure
from safe_dtype.devices.probing.isolation import Patience, measure_in_children
from safe_dtype.devices.probing.probe_request import ProbeRequest
from safe_dtype.errors import ProbeError
from safe_dtype.facts import BFLOAT16, FLOAT32, Verdict, VerdictKind

HERE = Path(__file__).resolve().parents[1]


DEADLY = ("segfault", "abort", "hang", "exit", "lost")


def request_for(*ops: str, ops_module: str = "deadly_ops") -> ProbeRequest:
    """Ask for `ops` in float32, briefly."""
    return ProbeRequest("cpu", tuple((FLOAT32, op) for op in ops), ((64, 64),), 0.05, threads=1, ops_module=ops_module)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    """What comes out when every other cell ends its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        asked = request_for("noise", *DEADLY, "softmax")
        return {verdict.op: verdict for verdict in measure_in_children(asked, Patience(cell=2.0))}


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        pytest.param("segfault", "killed by SIGSEGV", id="segfault"),
        pytest.param("abort", "killed by SIGABRT: LLVM ERROR: Cannot select: bf16 = fadd", id="abort"),
        pytest.param("hang", "killed after no answer in 2 s", id="hang"),
        pytest.param("exit", "ended with status 3", id="exit"),
        pytest.param("lost", "CUDA error: an illegal memory access", id="device-lost-in-a-child-that-lives"),
    ],
)
def test_death_is_a_verdict(verdicts: dict[str, Verdict], op: str, reason: str) -> None:
    """The cell that ended the child is the one that crashes, and the reason says how, in the library's last words."""
    assert verdicts[op].kind is VerdictKind.CRASHES
    assert verdicts[op].reason.startswith(reason)


@pytest.mark.parametrize("op", ["noise", "softmax"])
def test_the_others_are_measured(verdicts: dict[str, Verdict], op: str) -> None:
    """Cells before and after a death are measured, in another child where needed; prints do no harm."""
    assert verdicts[op].kind is VerdictKind.NATIVE


def test_order_is_kept(verdicts: dict[str, Verdict]) -> None:
    """Verdicts come in the order asked."""
    assert tuple(verdicts) == ("noise", *DEADLY, "softmax")


def test_child_that_cannot_start() -> None:
    """A child that fails before its first cell is an error with its last words, not a verdict on a dtype."""
    with pytest.raises(ProbeError, match="status 1: ModuleNotFoundError: No module named 'absent_ops'"):
        list(measure_in_children(request_for("softmax", ops_module="absent_ops")))


def test_measure_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAFE_DTYPE_PROBE=child measures in a child, with the same kinds of verdicts."""
    monkeypatch.setenv("SAFE_DTYPE_PROBE", "child")
    found = measure("cpu", (BFLOAT16,), ((64, 64),), ops=("softmax", "fft"), cell_seconds=0.05)
    assert [(verdict.op, verdict.kind.value) for verdict in found if verdict.op == "fft"] == [("fft", "unsupported")]
    softmax = next(verdict for verdict in found if verdict.op == "softmax")
    assert softmax.runs
    assert "float32's time" in softmax.reason


def test_unknown_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that means nothing is an error that names those that do: to measure again would end in the same."""
    monkeypatch.setenv("SAFE_DTYPE_PROBE", "yes")
    with pytest.raises(ProbeError, match=r"is 'yes'\. Next: set it to child or inprocess, or remove it\.$"):
        measure("cpu", ops=("softmax",))
