"""Products in a step of training: the way back counts as much as the way forward. Real measurements on this CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from safe_dtype.devices import facts_of, measure, routes_of
from safe_dtype.devices.probing.cell import Cell
from safe_dtype.devices.probing.ops import OPS, Op, trained_linear
from safe_dtype.devices.probing.probe import measure_here
from safe_dtype.devices.probing.probe_request import ProbeRequest
from safe_dtype.devices.probing.workspace import Workspace
from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype, Verdict, VerdictKind

WIDTHS = ((96, 64),)


def train(product: Any = functional.linear, dtype: Dtype = BFLOAT16) -> Verdict:
    """Measure a step of training with another product than torch's own."""
    op = Op(trained_linear(product), lambda widths: widths, multiplies=True)
    asked = ProbeRequest("cpu", ((dtype, "training"),), WIDTHS, 0.05, torch.get_num_threads())
    return next(measure_here(asked, {"training": op}))


class Spoiled(torch.autograd.Function):
    """A product whose way forward is right, and whose way back is made by `spoil`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, spoil: Any) -> Tensor:
        """Return the right product."""
        ctx.save_for_backward(x, weight)
        ctx.spoil = spoil
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input and weight, spoiled."""
        x, weight = ctx.saved_tensors
        of_input, of_weight = gradient.float() @ weight, gradient.float().T @ x
        return (*ctx.spoil(of_input, of_weight), None)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        pytest.param(lambda of_input, of_weight: (of_input, of_weight), VerdictKind.NATIVE, id="right"),
        pytest.param(lambda of_input, of_weight: (of_input * 1.5, of_weight), VerdictKind.WRONG, id="input"),
        pytest.param(lambda of_input, of_weight: (of_input, of_weight * 0), VerdictKind.WRONG, id="weight"),
        pytest.param(lambda of_input, of_weight: (of_input * torch.nan, of_weight), VerdictKind.WRONG, id="nan"),
        pytest.param(lambda of_input, of_weight: (of_input, of_weight * torch.inf), VerdictKind.WRONG, id="inf"),
    ],
)
def test_wrong_gradients_are_noticed(spoil: Any, kind: VerdictKind) -> None:
    """A dtype whose way forward is right is wrong all the same where a gradient is off, of the input or of the weight."""
    assert train(lambda x, weight: Spoiled.apply(x, weight, spoil)).kind is kind


def test_a_kernel_that_only_lacks_its_way_back() -> None:
    """A dtype that cannot go back is not supported in training, whatever it does forward, and the reason is torch's."""

    def refuse(of_input: Tensor, of_weight: Tensor) -> None:
        raise RuntimeError("\"mm_backward\" not implemented for 'BFloat16'")

    verdict = train(lambda x, weight: Spoiled.apply(x, weight, refuse))
    assert (verdict.kind, verdict.reason) == (
        VerdictKind.UNSUPPORTED,
        "\"mm_backward\" not implemented for 'BFloat16'",
    )


def test_a_product_that_autocast_leaves_in_float32() -> None:
    """Where autocast has no effect, the dtype was not measured: it is not supported, and the reason says so."""
    verdict = train(lambda x, weight: (x[:, None] * weight).sum(-1))
    assert verdict.kind is VerdictKind.UNSUPPORTED
    assert verdict.reason == "autocast to torch.bfloat16 leaves products in torch.float32"


def test_it_is_a_ratio_to_training_in_float32() -> None:
    """Training is compared with training: the verdict says how much longer a step takes than in float32."""
    verdicts = {one.op: one for one in measure("cpu", (BFLOAT16,), WIDTHS, ops=("matmul_training", "conv2d_training"))}
    assert all(verdict.runs and "x float32's time at 512 rows" in verdict.reason for verdict in verdicts.values())


def test_it_is_remembered_beside_the_rest() -> None:
    """Verdicts on training have an entry of their own; those on inference are found as before."""
    plain = facts_of("cpu", dtypes=(BFLOAT16, FLOAT32))
    trained = facts_of("cpu", dtypes=(BFLOAT16, FLOAT32), ops=("matmul_training",))
    assert {verdict.op for verdict in trained.verdicts} == {"matmul_training"}
    assert trained.verdict(BFLOAT16, "matmul_training").runs
    assert facts_of("cpu", dtypes=(BFLOAT16, FLOAT32)).verdicts == plain.verdicts


def test_compiled_products_are_measured_at_few_rows() -> None:
    """The product that is compiled is timed at one row, at 8 and at 16, and has no rate for prompts."""
    pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
    routes = [route for route in routes_of(FLOAT32, "cpu") if route[1] == "matmul_rows"]
    assert [dtype for dtype, _ in routes] == [FLOAT32, BFLOAT16]
    compiled = [one for one in measure("cpu", widths=WIDTHS, routes=routes, ops=()) if one.op == "matmul_rows"]
    assert [one.kind for one in compiled] == [VerdictKind.NATIVE] * 2
    for verdict in compiled:
        assert [timing.rows for timing in verdict.timings] == [1, 8, 16]
        assert verdict.decode_bytes_per_s
        assert verdict.prefill_flops_per_s is None


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_a_vocabulary_beyond_what_is_measured(dtype: Dtype) -> None:
    """Every way to multiply is measured for a weight that is larger than all the numbers at hand together."""
    space = Workspace(torch.device("cpu"))
    for one, name in routes_of(dtype, "cpu"):
        verdict = Cell(space, one, name, OPS[name]).verdict([(4_000_000, 256)], 0.05)
        assert verdict.kind is VerdictKind.NATIVE, verdict.reason


@pytest.mark.parametrize("op", ["matmul_bfloat16_rows", "matmul_float16_rows"])
def test_weights_in_16_bit(op: str) -> None:
    """Products of float32 numbers by weights in 16 bit come out right, and are known to read two bytes a number."""
    asked = ProbeRequest("cpu", ((FLOAT32, op),), ((512, 256),), 0.02, torch.get_num_threads())
    (verdict,) = measure_here(asked, OPS)
    assert (verdict.kind, verdict.bytes_each) == (VerdictKind.NATIVE, 2)
