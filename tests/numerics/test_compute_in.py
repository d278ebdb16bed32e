"""What `compute_in` computes: every operation in every pair of storage and compute dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pairwise import pairwise
from torch import Tensor, nn

from safe_dtype.errors import UnknownDtypeError
from safe_dtype.numerics import FAMILIES, compute_in

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DEEP = 3000  # products this long, added up in 16 bit, would be far off


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, W, BIAS, BATCH = numbers(5, DEEP), numbers(7, DEEP, seed=1), numbers(7, seed=2), numbers(2, 5, 64, seed=3)
HEADS = numbers(1, 4, 6, 8, seed=4)
IMAGE, KERNEL = numbers(1, 3, 8, 8), numbers(4, 3, 3, 3, seed=5)
ENDS = torch.tensor([2, 2, 5], dtype=torch.int32)

OPERATIONS: dict[str, tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "F.linear": ("linear", F.linear, (X, W, BIAS)),
    "F.linear-by-name": ("linear", lambda x, w, b: F.linear(bias=b, weight=w, input=x), (X, W, BIAS)),
    "F.linear-one-row": ("linear", F.linear, (X[0], W, BIAS)),
    "F.bilinear": ("linear", F.bilinear, (X[:, :20], X[:, :30], numbers(4, 20, 30))),
    "@": ("matmul", lambda a, b: a @ b, (X, W.T)),
    "torch.matmul": ("matmul", torch.matmul, (BATCH, BATCH.mT)),
    "torch.linalg.matmul": ("matmul", torch.linalg.matmul, (X, W.T)),
    "torch.mm": ("matmul", torch.mm, (X, W.T)),
    "Tensor.mm": ("matmul", lambda a, b: a.mm(b), (X, W.T)),
    "torch.mv": ("matmul", torch.mv, (X, W[0])),
    "torch.addmm": ("matmul", torch.addmm, (BIAS, X, W.T)),
    "torch.addmm-by-name": ("matmul", lambda b, x, w: torch.addmm(b, mat2=w, mat1=x), (BIAS, X, W.T)),
    "torch.addmm-scaled": ("matmul", lambda b, x, w: torch.addmm(b, x, w, beta=2, alpha=0.5), (BIAS, X, W.T)),
    "Tensor.addmm": ("matmul", lambda b, x, w: b.addmm(x, w), (BIAS, X, W.T)),
    "torch.einsum": ("matmul", lambda a, b: torch.einsum("ij,kj->ik", a, b), (X, W)),
    "torch.tensordot": ("matmul", lambda a, b: torch.tensordot(a, b, dims=([1], [1])), (X, W)),
    "torch.bmm": ("bmm", torch.bmm, (BATCH, BATCH.mT)),
    "Tensor.baddbmm": ("bmm", lambda c, a, b: c.baddbmm(a, b, beta=0.5), (numbers(2, 5, 5), BATCH, BATCH.mT)),
    "torch.addbmm": ("bmm", torch.addbmm, (numbers(5, 5), BATCH, BATCH.mT)),
    "F.conv1d": ("conv", F.conv1d, (numbers(1, 3, 9), numbers(4, 3, 3), numbers(4))),
    "F.conv2d": ("conv", lambda x, w: F.conv2d(x, w, padding=1, stride=2), (IMAGE, KERNEL)),
    "F.conv3d": ("conv", F.conv3d, (numbers(1, 3, 4, 4, 4), numbers(4, 3, 2, 2, 2))),
    "F.conv_transpose1d": ("conv", F.conv_transpose1d, (numbers(1, 3, 9), numbers(3, 4, 3))),
    "F.conv_transpose2d": ("conv", F.conv_transpose2d, (IMAGE, numbers(3, 4, 3, 3))),
    "F.conv_transpose3d": ("conv", F.conv_transpose3d, (numbers(1, 3, 4, 4, 4), numbers(3, 4, 2, 2, 2))),
    "attention": ("attention", F.scaled_dot_product_attention, (HEADS, HEADS, HEADS)),
    "attention-causal": (
        "attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (HEADS,) * 3,
    ),
    "attention-grouped": (
        "attention", lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), (HEADS, HEADS[:, :2]),
    ),
    "experts": ("experts", lambda x, w: F.grouped_mm(x, w, offs=ENDS), (BATCH[0], numbers(3, 64, 8))),
}  # fmt: skip


def exact_result(call: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> Tensor:
    """Return the result in float64, from the numbers that are stored; of experts one by one, which torch needs here."""
    operands = tuple(one.double() for one in operands)
    if call is OPERATIONS["experts"][1]:
        x, w = operands
        return torch.cat([x[:2] @ w[0], x[2:] @ w[2]])
    return call(*operands)


def roundings_off(result: Tensor, exact: Tensor) -> float:
    """Return by how many steps of the result's dtype it is off, at most; a thousandth of the largest counts as zero."""
    spacing = torch.finfo(result.dtype).eps * exact.abs().clamp(min=float(exact.abs().max()) * 1e-2)
    return float(((result.double() - exact).abs() / spacing).max())


@pytest.mark.parametrize(("name", "storage", "compute"), pairwise(OPERATIONS, [F32, BF16, F16], [F32, BF16, F16]))
def test_an_operation_is_as_exact_as_the_coarser_dtype(name: str, storage: torch.dtype, compute: torch.dtype) -> None:
    """A result has the storage dtype, and errs as the coarser of the two dtypes does."""
    _, call, operands = OPERATIONS[name]
    stored = tuple(one.to(storage) for one in operands)
    with compute_in(compute):
        result = call(*stored)
    exact = exact_result(call, stored)
    coarser = max(torch.finfo(storage).eps, torch.finfo(compute).eps)
    assert result.dtype == storage
    # Operands cast, scores inside attention, the result: each rounds, and a sum of products less than it is long.
    assert float((result.double() - exact).norm() / exact.norm()) < 4 * max(coarser, 1e-6)


@pytest.mark.parametrize("storage", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_float32_rounds_once(name: str, storage: torch.dtype) -> None:
    """What is computed in float32 is the exact result rounded, or the number beside it."""
    _, call, operands = OPERATIONS[name]
    stored = tuple(one.to(storage) for one in operands)
    with compute_in("float32"):
        result = call(*stored)
    assert roundings_off(result, exact_result(call, stored)) <= 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_when_is_asked_with_family_and_rows(name: str) -> None:
    """`when` gets the family and the rows of the product's first operand, never the bias's."""
    family, call, operands = OPERATIONS[name]
    asked = []
    with compute_in("float32", when=lambda *which: asked.append(which) or True):
        call(*(one.to(BF16) for one in operands))
    first = operands[1] if "add" in name else operands[0]
    assert asked == [(family, first.numel() // first.shape[-1])]


@pytest.mark.parametrize("name", OPERATIONS)
def test_ops_leaves_other_families_alone(name: str) -> None:
    """An operation of a family that is not named comes out as without us."""
    family, call, operands = OPERATIONS[name]
    stored = tuple(one.to(BF16) for one in operands)
    with compute_in("float32", ops=[one for one in FAMILIES if one != family]):
        assert torch.equal(call(*stored), call(*stored))
    with compute_in("float32", when=lambda *_: False):
        left = call(*stored)
    assert torch.equal(left, call(*stored))


@pytest.mark.parametrize(
    ("dtype", "options", "error"),
    [
        pytest.param("int8", {}, UnknownDtypeError, id="not-computed-in"),
        pytest.param("float33", {}, UnknownDtypeError, id="no-such-dtype"),
        pytest.param("float32", {"ops": ["gemm"]}, ValueError, id="no-such-family"),
        pytest.param("float32", {"ops": "linear"}, ValueError, id="letters-of-a-family"),
    ],
)
def test_wrong_arguments_are_errors(dtype: str, options: dict[str, Any], error: type[Exception]) -> None:
    """What cannot be meant is refused before anything is computed."""
    with pytest.raises(error):
        compute_in(dtype, **options)


@pytest.mark.parametrize("dtype", ["float32", "torch.float32", torch.float32], ids=["name", "torch-name", "torch"])
def test_a_dtype_may_be_named_in_many_ways(dtype: Any) -> None:
    """Our names and torch's own are understood."""
    assert compute_in(dtype).dtype == torch.float32


# Masks


@pytest.mark.parametrize("by_name", [True, False], ids=["by-name", "by-position"])
@pytest.mark.parametrize("lowest", [torch.finfo(BF16).min, -1e9], ids=["finfo-min", "minus-1e9"])
def test_a_masked_row_stays_finite_in_float16(lowest: float, by_name: bool) -> None:
    """A mask that float16 cannot hold does not become -Inf, of which a whole row would be NaN."""
    q = HEADS.to(BF16)
    mask = torch.zeros(6, 6, dtype=BF16)
    mask[0], mask[1, 3:] = lowest, lowest
    with compute_in("float16"):
        found = F.scaled_dot_product_attention(q, q, q, attn_mask=mask) if by_name else (
            F.scaled_dot_product_attention(q, q, q, mask)
        )  # fmt: skip
    exact = F.scaled_dot_product_attention(q.double(), q.double(), q.double(), mask.double())
    assert found[:, :, 0].isfinite().all()  # what nobody looks at: a padded position
    assert torch.allclose(found[:, :, 1:].double(), exact[:, :, 1:], atol=0.02)


def test_minus_infinity_in_a_mask_stays() -> None:
    """A row of nothing but -Inf is NaN inside the block exactly where it is outside."""
    q, mask = HEADS.to(BF16), torch.full((6, 6), -torch.inf, dtype=BF16).triu(1)
    with compute_in("float16"):
        found = F.scaled_dot_product_attention(q, q, q, mask)
    assert torch.allclose(found.float(), F.scaled_dot_product_attention(q, q, q, mask).float(), atol=0.05)


def test_a_float32_mask_beside_16_bit_heads() -> None:
    """A mask in float32 beside 16-bit operands, which plain torch refuses, is taken."""
    q = HEADS.to(BF16)
    with compute_in("float32"):
        found = F.scaled_dot_product_attention(q, q, q, torch.zeros(6, 6))
    assert torch.equal(found, F.scaled_dot_product_attention(q.float(), q.float(), q.float()).to(BF16))


def test_overflow_is_not_hidden() -> None:
    """An operand beyond float16's range becomes Inf: only masks are brought into range."""
    with compute_in("float16"):
        found = F.linear(torch.full((2, 4), -1e5, dtype=BF16), torch.ones(3, 4, dtype=BF16))
    assert found.isinf().all()


# What is left alone


def test_mixed_dtypes_are_multiplied_in_the_dtype_of_the_first() -> None:
    """Where plain torch refuses float32 by bfloat16, the product comes out as float32."""
    x, w = X.float(), W.to(BF16)
    with pytest.raises(RuntimeError, match="dtype"):
        F.linear(x, w)
    with compute_in("float32"):
        assert torch.equal(F.linear(x, w), F.linear(x, w.float()))
        assert F.linear(x.to(BF16), w.float()).dtype == BF16


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.complex64)],
    ids=["integers", "float64", "complex"],
)
def test_other_dtypes_are_left_alone(tensor: Tensor) -> None:
    """Products of what is no dtype of ours are torch's own."""
    with compute_in("bfloat16"):
        assert torch.equal(tensor @ tensor.T, torch.matmul(tensor, tensor.T))
        assert (tensor @ tensor.T).dtype == tensor.dtype


def test_tensors_without_numbers() -> None:
    """On the meta device, which has no autocast, dtypes and shapes come out as elsewhere."""
    with compute_in("float32"):
        found = F.linear(torch.ones(2, 3, dtype=BF16, device="meta"), torch.ones(4, 3, dtype=BF16, device="meta"))
    assert (found.dtype, found.shape, found.device.type) == (BF16, (2, 4), "meta")


def test_an_integer_weight_is_refused_as_ever() -> None:
    """A weight of integers is an error of torch's, not cast."""
    with compute_in("float32"), pytest.raises(RuntimeError):
        F.linear(torch.ones(2, 3, dtype=BF16), torch.ones(4, 3, dtype=torch.int8))


def test_out_is_left_alone() -> None:
    """With `out=` the operation is torch's own, into the tensor that was given."""
    a, plain, out = X.to(BF16), torch.empty(5, 5, dtype=BF16), torch.empty(5, 5, dtype=BF16)
    torch.mm(a, a.T, out=plain)
    with compute_in("float32"):
        assert torch.mm(a, a.T, out=out) is out
    assert torch.equal(out, plain)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda p, f: (f[None, :, None] @ p[None, None]).flatten(), id="matmul"),
        pytest.param(lambda p, f: torch.einsum("i,j->ij", f, p).flatten(), id="einsum"),
    ],
)
def test_rotary_angles_keep_their_precision(call: Callable[..., Tensor]) -> None:
    """Positions times frequencies add nothing up, and are not narrowed: position 4097 is none of bfloat16's."""
    positions, frequencies = torch.tensor([4097.0, 4099.0]), torch.tensor([1.0, 0.5])
    with compute_in("bfloat16"):
        assert torch.equal(call(positions, frequencies), call(positions, frequencies))
        assert 4099.0 in call(positions, frequencies)


def test_a_quantized_subclass_is_left_alone() -> None:
    """A tensor subclass, whose dtype is not what its numbers are held in, is multiplied in its own way."""

    class Quantized(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return "its own way" if func is F.linear else super().__torch_function__(func, types, args, kwargs)

    weight = torch.ones(3, 4, dtype=BF16).as_subclass(Quantized)
    with compute_in("float32"):
        assert F.linear(torch.ones(2, 4, dtype=BF16), weight) == "its own way"


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        pytest.param((0, 4), (3, 4), id="no-rows"),
        pytest.param((2, 0, 4), (3, 4), id="no-rows-in-a-batch"),
        pytest.param((2, 0), (3, 0), id="nothing-to-add-up"),
        pytest.param((2, 4), (0, 4), id="no-outputs"),
        pytest.param((2, 4), (4,), id="weight-of-one-dimension"),
        pytest.param((4,), (4,), id="both-of-one-dimension"),
    ],
)
def test_edges_of_linear(x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    """Empty and one-dimensional operands give torch's shapes."""
    with compute_in("float32"):
        found = F.linear(torch.ones(x, dtype=BF16), torch.ones(weight, dtype=BF16))
    assert torch.equal(found, F.linear(torch.ones(x), torch.ones(weight)).to(BF16))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda a: torch.mm(a[None], a), id="mm-of-a-batch"),
        pytest.param(lambda a: a @ a[:, :2], id="shapes-do-not-match"),
        pytest.param(lambda a: a @ "text", id="no-tensor"),
        pytest.param(lambda a: torch.bmm(a[None], a[None].expand(2, 4, 4)), id="batches-do-not-match"),
    ],
)
def test_errors_are_torchs(call: Callable[[Tensor], Any]) -> None:
    """What torch refuses, it refuses inside the block, in the same words."""
    a = torch.ones(4, 4)
    with pytest.raises((RuntimeError, TypeError)) as plain:
        call(a[:3])
    with compute_in("bfloat16"), pytest.raises(plain.type) as inside:
        call(a[:3])
    assert str(inside.value).replace("BFloat16", "Float") == str(plain.value)


def test_modules_with_attention_of_their_own() -> None:
    """`nn.MultiheadAttention` is computed as a whole, weights returned in the storage dtype too."""
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(32, 4, batch_first=True).to(BF16).eval(), BATCH[..., :32].to(BF16)
    with torch.no_grad(), compute_in("float32"):
        found, weights = module(x, x, x, attn_mask=torch.full((5, 5), -torch.inf, dtype=BF16).triu(1))
    with torch.no_grad():
        exact, _ = module.double()(*[x.double()] * 3, attn_mask=torch.full((5, 5), -torch.inf).double().triu(1))
    assert (found.dtype, weights.dtype) == (BF16, BF16)
    assert roundings_off(found, exact) <= 1
