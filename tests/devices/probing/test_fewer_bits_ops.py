"""Products by codes are measured with codes at the ends of their range, and beside what the codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from safe_dtype.devices.probing.cell import Cell
from safe_dtype.devices.probing.fewer_bits_ops import by_codes
from safe_dtype.devices.probing.ops import OPS
from safe_dtype.devices.probing.workspace import Workspace
from safe_dtype.facts import BFLOAT16, CODES, FLOAT8_E4M3, FLOAT16, FLOAT32, INT4, INT8, Dtype, Verdict, VerdictKind

SHAPE = (128, 256)


@pytest.fixture(scope="module")
def space() -> Workspace:
    """Room for one measurement after another."""
    return Workspace(torch.device("cpu"))


@pytest.fixture(params=["compiled", "torch"])
def _by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled multiplies, and torch as where nothing is."""
    if request.param == "compiled":
        pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
        return
    without_compiled(monkeypatch)


def without_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing compiled."""
    for module in ("kernels.weights.coded_weight", "kernels.weights.coded_product", "devices.probing.fewer_bits_ops"):
        monkeypatch.setattr(import_module(f"safe_dtype.{module}"), "has_code", lambda *_: False)


def verdict(space: Workspace, dtype: Dtype, op: str) -> Verdict:
    """Return the verdict on one operation at one shape, in a moment."""
    return Cell(space, dtype, op, OPS[op]).verdict((SHAPE,), 0.02)


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "cast"), [(FLOAT32, ""), (BFLOAT16, ""), (BFLOAT16, "_cast"), (FLOAT16, "_cast")], ids=str
)
def test_right(space: Workspace, dtype: Dtype, cast: str, codes: Dtype) -> None:
    """Ours and torch's are right on this CPU, with a rate of each."""
    measured = verdict(space, dtype, f"matmul_{codes}{cast}")
    assert measured.kind is VerdictKind.NATIVE, measured.reason
    assert measured.decode_bytes_per_s
    assert measured.bytes_each == (1.0 if codes == INT8 else 0.5)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "saturates": lambda y: y.clamp(-10, 10),
    "one-output": lambda y: torch.cat([y[:, :-1], y[:, -1:] + 100], dim=1),
    "nan": lambda y: y * torch.nan,
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong(space: Workspace, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that comes to other numbers is told by name, with how far it is off."""
    own = import_module("safe_dtype.kernels.weights.int4_by_torch").product
    without_compiled(monkeypatch)
    monkeypatch.setattr(
        import_module("safe_dtype.kernels.weights.int4_by_torch"), "product", lambda *args: WRONG[fault](own(*args))
    )
    measured = verdict(space, BFLOAT16, "matmul_int4")
    assert measured.kind is VerdictKind.WRONG
    assert "row" in measured.reason


def test_absent(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing multiplies 4 bits that is refused, with what there is to install; 8 bits are not."""
    without_compiled(monkeypatch)
    monkeypatch.setattr(import_module("safe_dtype.kernels.weights.int4_by_torch"), "has_product", lambda: False)
    measured = verdict(space, BFLOAT16, "matmul_int4")
    assert measured.kind is VerdictKind.UNSUPPORTED
    assert "safe-dtype[fast]" in measured.reason
    assert verdict(space, BFLOAT16, "matmul_int8").runs


@pytest.mark.parametrize("dtype", [INT8, FLOAT8_E4M3], ids=str)
def test_other_dtypes(space: Workspace, dtype: Dtype) -> None:
    """What no model computes in is not multiplied by codes."""
    assert verdict(space, dtype, "matmul_int4").kind is VerdictKind.UNSUPPORTED


@pytest.mark.parametrize("shape", [(100, 256), (128, 250)], ids=str)
def test_odd_shapes(space: Workspace, shape: tuple[int, int]) -> None:
    """Shapes of weights that 4 bits leave in 8 are measured too: with whole blocks of outputs, and odd inputs in 8 bits."""
    measured = Cell(space, BFLOAT16, "matmul_int4", OPS["matmul_int4"]).verdict((shape,), 0.02)
    assert measured.runs, measured.reason
    assert by_codes(INT4, None)(space, BFLOAT16, 1, shape).work >= 2.0 * shape[0] * shape[1]
