"""How blocks of `compute_in` go together: with each other, autocast, gradients, threads, compilation, whole models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numerics.laid_out import MODELS
from tiny_models import TINY
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from safe_dtype.numerics import compute_in

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


X, W = numbers(5, 3000), numbers(7, 3000, seed=1)


def linear_in(dtype: torch.dtype) -> Tensor:
    """Return the product of X and W computed in a dtype, with no block around it."""
    return F.linear(X.to(dtype), W.to(dtype)).to(BF16)


def plain() -> Tensor:
    """Return the product of X and W as the surroundings have it computed."""
    return F.linear(X, W)


class Net(nn.Module):
    """Two layers and a product, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(300, 600, dtype=BF16), nn.Linear(600, 300, dtype=BF16)

    def forward(self, x: Tensor) -> Tensor:
        """Return a square matrix of (rows, rows)."""
        return self.down(torch.relu(self.up(x))) @ x.mT


# Blocks within blocks


@pytest.mark.parametrize("outer", [F32, F16, BF16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("inner", [F32, F16, BF16], ids=["f32", "f16", "bf16"])
def test_the_inner_block_decides(inner: torch.dtype, outer: torch.dtype) -> None:
    """Of two blocks, the inner one's dtype is computed in, and the outer one's again after it."""
    with compute_in(outer):
        with compute_in(inner):
            assert torch.equal(plain(), linear_in(inner))
        assert torch.equal(plain(), linear_in(outer))


def test_the_inner_block_decides_to_leave_alone() -> None:
    """An operation for which the inner block's `when` is False is plain in the outer block, too."""
    expected = plain()
    with compute_in("float16"), compute_in("float32", when=lambda *_: False):
        assert torch.equal(plain(), expected)


def test_the_outer_block_has_the_families_that_the_inner_does_not_name() -> None:
    """A block for convolutions within a block for everything leaves linear operations to the outer."""
    with compute_in("float32"), compute_in("float16", ops=["conv"]):
        assert torch.equal(plain(), linear_in(F32))


def test_one_block_object_entered_twice() -> None:
    """The same object may be entered again inside itself."""
    block = compute_in("float32")
    with block:
        with block:
            assert torch.equal(plain(), linear_in(F32))
        assert torch.equal(plain(), linear_in(F32))
    assert not _get_current_function_mode_stack()


# Autocast


def test_autocast_inside_decides() -> None:
    """`torch.autocast` within the block computes in its own dtype, and is over with its block."""
    with compute_in("float32"):
        with torch.autocast("cpu", torch.float16):
            found = plain()
        after = plain()
    assert (found.dtype, torch.equal(found, F.linear(X.half(), W.half()))) == (F16, True)
    assert torch.equal(after, linear_in(F32))


def test_autocast_outside_is_overruled() -> None:
    """The block within `torch.autocast` computes in the block's dtype."""
    with torch.autocast("cpu", torch.float16), compute_in("float32"):
        found = plain()
    assert torch.equal(found, linear_in(F32))


def test_autocast_on_both_sides() -> None:
    """The innermost of three decides."""
    with torch.autocast("cpu", BF16), compute_in("float32"), torch.autocast("cpu", F16):
        assert plain().dtype == F16


def test_a_switched_off_autocast_inside_changes_nothing() -> None:
    """Switching off an autocast that is not there does not switch off the block."""
    with compute_in("float32"), torch.autocast("cpu", enabled=False):
        assert torch.equal(plain(), linear_in(F32))


def test_float32_operands_are_not_left_to_an_outer_autocast() -> None:
    """Operands that are in the block's dtype already are computed in it, whatever autocast is around."""
    x, w = X.float(), W.float()
    with torch.autocast("cpu", BF16), compute_in("float32"):
        found = F.linear(x, w)
    assert torch.equal(found, F.linear(x, w))


# Gradients


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss, by name of the parameter."""
    model.zero_grad()
    model(x).float().square().mean().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters()}


def test_gradients_are_those_of_float32() -> None:
    """A bfloat16 parameter gets a bfloat16 gradient, as near to float32's as roundings in between let it be."""
    x, model = numbers(9, 300), Net()
    with compute_in("float32"):
        found = gradients(model, x)
    exact = gradients(model.float(), x.float())
    for name, gradient in found.items():
        assert gradient.dtype == BF16
        assert float((gradient.float() - exact[name]).norm() / exact[name].norm()) < 2e-2, name


def test_backward_may_be_outside() -> None:
    """Only the forward pass has to be in the block."""
    x, model = numbers(9, 300), Net()
    with compute_in("float32"):
        inside = gradients(model, x)
        loss = model(x).float().square().mean()
    model.zero_grad()
    loss.backward()
    assert all(torch.equal(one.grad, inside[name]) for name, one in model.named_parameters())


def test_gradient_checkpointing_takes_blocks_as_its_contexts() -> None:
    """Activations are recomputed in the blocks that `context_fn` names, and gradients are those without recomputing."""
    x, model = numbers(9, 300), Net()
    with compute_in("float32"):
        expected = gradients(model, x)

    def recomputing(x: Tensor) -> Tensor:
        def blocks() -> tuple[compute_in, compute_in]:
            return compute_in("float32"), compute_in("float32")

        return checkpoint(model, x, use_reentrant=False, context_fn=blocks)

    model.zero_grad()
    recomputing(x).float().square().mean().backward()
    assert all(torch.equal(one.grad, expected[name]) for name, one in model.named_parameters())


def test_gradient_checkpointing_within_a_block_is_an_error() -> None:
    """Recomputing leaves the block around it, even if `backward` is called inside: torch notices, and says so."""
    with compute_in("float32"):
        loss = checkpoint(Net(), numbers(9, 300), use_reentrant=False).float().sum()
        with pytest.raises(RuntimeError, match="different metadata"):
            loss.backward()


def test_function_transforms() -> None:
    """`torch.vmap` and `torch.func.grad` go through, over a weight that would be cast in pieces as well."""
    x, w = numbers(3, 2, 1100), numbers(2000, 1100)
    with compute_in("float32"):
        found = torch.vmap(lambda one: F.linear(one, w))(x)
        slope = torch.func.grad(lambda one: F.linear(one, w).float().sum())(x)
    assert torch.equal(found, F.linear(x.float(), w.float()).to(BF16))
    assert torch.allclose(slope.float(), w.float().sum(0).expand_as(x), rtol=1e-2, atol=1e-2)


def _with_dual_numbers(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(run(forward_ad.make_dual(x, torch.ones_like(x))))
        return result.primal, result.tangent


FOLLOWED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, ...]]] = {
    "vmap": lambda run, x: (torch.vmap(run)(x),),
    "jvp": lambda run, x: torch.func.jvp(run, (x,), (torch.ones_like(x),)),
    "dual-numbers": _with_dual_numbers,
    "vmap-of-grad": lambda run, x: (torch.vmap(torch.func.grad(lambda one: run(one).float().sum()))(x),),
}
NARROW, WIDE, BATCH = numbers(20, 1100), numbers(2000, 1100), numbers(3, 1100, 800)
PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, NARROW),
    "linear-in-pieces": lambda x: F.linear(x, WIDE),
    "matmul-in-pieces": lambda x: x @ WIDE.t(),
    "bmm-in-pieces": lambda x: torch.bmm(x.expand(3, *x.shape[-2:]), BATCH),
    "einsum": lambda x: torch.einsum("...i,ji->...j", x, NARROW),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("transform", FOLLOWED.values(), ids=FOLLOWED)
@pytest.mark.parametrize("run", PRODUCTS.values(), ids=PRODUCTS)
def test_what_torch_follows(run: Callable[[Tensor], Tensor], transform: Callable[..., Any]) -> None:
    """Batches and derivatives are those of plain torch, to the precision of the dtype, and leave nothing behind."""
    x = numbers(3, 2, 1100)
    with torch.no_grad():
        expected = transform(run, x)
        with compute_in("float32"):
            found = transform(run, x)
            once_more = run(x[0])
        assert [one.dtype for one in found] == [one.dtype for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert float((one.float() - other.float()).norm()) <= 0.01 * float(other.float().norm())
        with compute_in("float32"):
            assert torch.equal(run(x[0]), once_more)


# Graphs


@pytest.mark.parametrize("whole", [True, False], ids=["fullgraph", "with-breaks"])
def test_a_compiled_model_computes_in_its_storage_dtype(whole: bool) -> None:
    """Under `torch.compile` the block steps aside: what runs are no torch functions any more."""
    torch._dynamo.reset()
    x, model = numbers(9, 300).float(), Net().float()
    with torch.no_grad(), compute_in("bfloat16"):
        found = torch.compile(model, backend="aot_eager", fullgraph=whole)(x)
        within = model(x)
    with torch.no_grad():
        expected = model(x)
    torch._dynamo.reset()
    assert torch.equal(found, expected)
    assert not torch.equal(within, expected)


@pytest.mark.parametrize("whole", [True, False], ids=["fullgraph", "with-breaks"])
def test_a_graph_run_by_torch_functions_is_still_inside(whole: bool) -> None:
    """With the backend "eager", which calls torch's functions one by one, the block around the call applies."""
    torch._dynamo.reset()
    x, model = numbers(9, 300), Net()
    with torch.no_grad(), compute_in("float32"):
        found, within = torch.compile(model, backend="eager", fullgraph=whole)(x), model(x)
    torch._dynamo.reset()
    assert torch.equal(found, within)


@pytest.mark.parametrize("whole", [True, False], ids=["fullgraph", "with-breaks"])
def test_a_block_inside_what_is_compiled_is_ignored(whole: bool) -> None:
    """A block that is compiled along casts nothing."""
    torch._dynamo.reset()

    def with_block_inside(x: Tensor) -> Tensor:
        with compute_in("float32"):
            return F.linear(x, W)

    found = torch.compile(with_block_inside, backend="eager", fullgraph=whole)(X)
    torch._dynamo.reset()
    assert torch.equal(found, plain())


def test_an_exported_model_computes_in_its_storage_dtype() -> None:
    """Under `torch.export` the block steps aside."""
    x, model = numbers(9, 300), Net()
    with torch.no_grad(), compute_in("float32"):
        exported = torch.export.export(model, (x,)).module()
    assert torch.equal(exported(x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_a_trace_holds_the_casts() -> None:
    """`torch.jit.trace` records what is computed, so a model traced in the block computes so ever after, for any rows."""
    model = Net()
    with torch.no_grad(), compute_in("float32"):
        traced = torch.jit.trace(model, numbers(9, 300))
        expected = model(numbers(4, 300))
    assert torch.equal(traced(numbers(4, 300)), expected)


# Surroundings


def test_threads_do_not_share_it() -> None:
    """A block of one thread changes nothing in another."""
    found: list[int] = []
    with compute_in("float32"):
        thread = threading.Thread(target=lambda: found.append(len(_get_current_function_mode_stack())))
        thread.start()
        thread.join()
        inside = plain()
    assert found == [0]
    assert torch.equal(inside, linear_in(F32))


def test_an_exception_leaves_nothing_behind() -> None:
    """After an error inside the block, and inside an operation, the next one is plain, and the next block works."""
    for _ in range(2):
        with pytest.raises(RuntimeError), compute_in("float32"):
            F.linear(X, W[:, :3])
    assert not _get_current_function_mode_stack()
    with compute_in("float32"):
        assert torch.equal(plain(), linear_in(F32))


def test_inference_mode() -> None:
    """Inside `torch.inference_mode` it computes the same."""
    with torch.inference_mode(), compute_in("float32"):
        found = plain()
    assert torch.equal(found, linear_in(F32))


# Whole models


def logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return what the model makes of inputs cast to its dtype."""
    dtype = next(model.parameters()).dtype
    cast = {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}
    with torch.no_grad():
        return model(**cast).logits


def rms(a: Tensor, b: Tensor) -> float:
    """Return the root of the mean squared difference."""
    return float((a.double() - b.double()).square().mean().sqrt())


def nearness(make: Callable[[], nn.Module], inputs: dict[str, Any], storage: torch.dtype) -> float:
    """Return how far a model in the block is from float32, as a part of how far it is without."""
    torch.manual_seed(0)
    model = make().eval().to(storage)
    without = logits(model, inputs)
    with compute_in("float32"):
        within = logits(model, inputs)
    exact = logits(model.float(), inputs)  # the same weights
    assert within.dtype == without.dtype
    return rms(within, exact) / rms(without, exact)


@pytest.mark.parametrize("storage", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_as_near_to_float32(name: str, storage: torch.dtype) -> None:
    """Logits keep the storage dtype; where activations round as often as products do, they are as near as before."""
    assert nearness(TINY[name].make, TINY[name].inputs(), storage) < 1.2


@pytest.mark.parametrize("storage", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_wider_model_is_as_near_to_float32_or_nearer(name: str, storage: torch.dtype) -> None:
    """Sums over 512 and more numbers are nearer, or as near where the plain kernels add up in float32, too."""
    ids = torch.arange(3, 23)[None]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if name == "t5" else {})
    assert nearness(MODELS[name], inputs, storage) < 1.05


def test_a_long_prompt_keeps_its_positions_in_16_bit_compute() -> None:
    """A float32 model whose products are computed in bfloat16 stays near itself beyond bfloat16's last whole number."""
    torch.manual_seed(0)
    model = TINY["qwen3"].make().eval()
    inputs = {"input_ids": torch.arange(600)[None] % 90}
    exact = logits(model, inputs)
    with compute_in("bfloat16"):
        found = logits(model, inputs)
    assert rms(found, exact) < 0.02 * float(exact.std())
