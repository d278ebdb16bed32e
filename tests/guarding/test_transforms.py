"""Under the transforms of `torch.func` and in forward-mode differentiation a guarded model is a plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import TINY
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from safe_dtype import guard, report
from safe_dtype.guarding.state import guard_of
from safe_dtype.models.islands import Island
from safe_dtype.models.shift_hooks import shift_on
from safe_dtype.testing import fault

# Of torch's own transforms, about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]
BF16, F32 = torch.bfloat16, torch.float32


def tangent(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result for a dual number, and its tangent."""
    with forward_ad.dual_level():
        primal, slope = forward_ad.unpack_dual(run(forward_ad.make_dual(x, torch.ones_like(x))))
        assert slope is not None
        return primal, slope


def total(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function with one number for a result."""
    return lambda x: run(x).float().sum()


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "vmap": lambda run, x: vmap(run)(x),
    "vmap-in-chunks": lambda run, x: vmap(run, chunk_size=2)(x),
    "vmap-of-vmap": lambda run, x: vmap(vmap(run))(x[:, None]),
    "grad": lambda run, x: grad(total(run))(x),
    "vmap-of-grad": lambda run, x: vmap(grad(total(run)))(x),
    "vjp": lambda run, x: vjp(run, x)[1](torch.ones_like(run(x))),
    "jvp": lambda run, x: jvp(run, (x,), (torch.ones_like(x),)),
    "jacrev": lambda run, x: jacrev(run)(x[0]),
    "jacfwd": lambda run, x: jacfwd(run)(x[0]),
    "hessian": lambda run, x: hessian(lambda one: (run(one).float() ** 2).sum())(x[0]),
    "linearize": lambda run, x: linearize(run, x)[1](torch.ones_like(x)),
    "dual-numbers": tangent,
}


def net(dtype: torch.dtype = BF16) -> nn.Sequential:
    """Return a small net."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)).to(dtype).eval().requires_grad_(False)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a result."""
    return [value] if isinstance(value, Tensor) else [one for part in value for one in tensors(part)]


def assert_equal(found: Any, expected: Any) -> None:
    """The same tensors, bit for bit."""
    assert [one.dtype for one in tensors(found)] == [one.dtype for one in tensors(expected)]
    assert all(torch.equal(one, other) for one, other in zip(tensors(found), tensors(expected), strict=True))


@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "f32"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_guarded_net(transform: Callable[..., Any], dtype: torch.dtype) -> None:
    """Every transform of a guarded net gives what it gives of the plain one, and nothing is recorded."""
    plain, x = net(dtype), torch.randn(4, 8, dtype=dtype)
    guarded = guard(copy.deepcopy(plain))
    assert_equal(transform(guarded, x), transform(plain, x))
    assert not report(guarded).events


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_forward_by_name(transform: Callable[..., Any]) -> None:
    """Other entries than the call are let be as well."""
    plain, x = net(), torch.randn(4, 8, dtype=BF16)
    guarded = guard(copy.deepcopy(plain))
    assert_equal(transform(guarded.forward, x), transform(plain.forward, x))
    assert not report(guarded).events


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_hooks_of_islands_and_of_shifts(transform: Callable[..., Any]) -> None:
    """What is in float32 in a 16-bit net, and what is multiplied by powers of two, goes along with every transform."""
    models = []
    for guards in (True, False):
        model = net()
        Island(BF16).attach(model[0].float())
        shift_on(model[1]).input_exponent = 3
        shift_on(model[1]).output_exponent = -3
        models.append(guard(model) if guards else model)
    x = torch.randn(4, 8, dtype=BF16)
    assert_equal(*(transform(model, x) for model in models))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_guard_with_a_compute_dtype(transform: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where steps are computed in another dtype than the weights', a transform is torch's."""
    guarded, plain, x = guard(net()), net(), torch.randn(4, 8, dtype=BF16)
    monkeypatch.setattr(guard_of(guarded), "autocast", ("cpu", torch.float16))
    assert_equal(transform(guarded, x), transform(plain, x))


def test_weights_of_an_ensemble() -> None:
    """`torch.func.functional_call` of a guarded net with stacked weights is mapped over them."""
    plain, x = net(), torch.randn(3, 8, dtype=BF16)
    stacked = {name: torch.stack([one, -one]) for name, one in plain.state_dict().items()}
    found, expected = (
        vmap(lambda weights, model=model: functional_call(model, weights, (x,)))(stacked)
        for model in (guard(net()), plain)
    )
    assert_equal(found, expected)


class Clamping(nn.Module):
    """A block that clamps in float16, so that its values are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and stay in the range."""
        hidden = self.linear(x)
        end = torch.finfo(torch.float16).max - 1000
        return torch.clamp(hidden, -end, end)


class Mapped(nn.Module):
    """A model that maps its first block over the input, as some do inside of their forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Clamping(), Clamping()])

    def forward(self, x: Tensor) -> Tensor:
        """Map the first block, call the second."""
        return self.layers[1](vmap(self.layers[0])(x))


def test_a_block_that_is_mapped_inside_of_a_step() -> None:
    """Blocks that are looked at in float16 may be called by a transform in the middle of a step."""
    torch.manual_seed(0)
    plain, x = Mapped().half().eval(), torch.randn(4, 8, dtype=torch.float16)
    guarded = guard(copy.deepcopy(plain))
    assert guard_of(guarded).blocks == list(guarded.layers)
    with torch.no_grad():
        assert torch.equal(guarded(x), plain(x))


def test_a_model_of_transformers() -> None:
    """Mapped over its input embeddings, a causal model gives what the plain one gives."""
    model = TINY["qwen3"].make().eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # torch maps over the others with a warning
    x = torch.randn(3, 1, 4, model.config.hidden_size)

    def logits(embeds: Tensor) -> Any:
        return model(inputs_embeds=embeds, use_cache=False, attention_mask={"full_attention": None}).logits

    expected = vmap(logits)(x)
    guard(model)
    assert_equal(vmap(logits)(x), expected)


def test_the_guard_is_there_again_afterwards() -> None:
    """A step after a transform is guarded as ever."""
    guarded, x = guard(net()), torch.randn(4, 8, dtype=BF16)
    vmap(guarded)(x)
    with torch.no_grad(), fault(guarded, "0", "nan"):
        assert bool(guarded(x).isfinite().all())
    assert report(guarded).events
