"""Shifts multiply at the border of one module, and have a norm compute in float32 inside a model in float16."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers.models as families
from torch import Tensor, nn

from safe_dtype.models.islands import Island
from safe_dtype.models.recast import recast
from safe_dtype.models.shift_hooks import Shift, norms_in_float32, settle_norms, shift_of, shift_on, shifted_modules

WIDTH = 16

NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer-norm": lambda: nn.LayerNorm(WIDTH),
    "layer-norm-without-weights": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "layer-norm-without-bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "rms-norm": lambda: nn.RMSNorm(WIDTH, eps=1e-6),
    "llama": lambda: families.llama.modeling_llama.LlamaRMSNorm(WIDTH),
    "gemma": lambda: families.gemma2.modeling_gemma2.Gemma2RMSNorm(WIDTH),
    "t5": lambda: families.t5.modeling_t5.T5LayerNorm(WIDTH),
}


class Block(nn.Module):
    """A linear layer and a norm, which may be called in any way that modelling code does."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of a projection."""
        found: Tensor = self.norm(self.linear(x))
        return found


class Named(nn.Module):
    """A module that takes its input by name, beside integers, and returns a tuple."""

    def forward(self, positions: Tensor, *, hidden: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
        """Return what came."""
        return hidden, positions, bias


def block(kind: str, *, gain: float = 1.0) -> Block:
    """Return a block in float32 with random weights; the norm's are multiplied by `gain`."""
    torch.manual_seed(0)
    made = Block(NORMS[kind]()).eval()
    with torch.no_grad():
        for one in made.norm.parameters():
            one.copy_((1 + 0.2 * torch.randn(WIDTH)) * gain)
    return made


def inputs() -> Tensor:
    """Return hidden states of shape (2, 3, WIDTH), values of float16."""
    return torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).half().float()


def test_positional_input() -> None:
    """Of what a module is given in order, the first floating tensor is multiplied, and nothing else."""
    shift, seen = Shift(), []
    shift.input_exponent = -3
    module = nn.Bilinear(4, 4, 2)
    shift.attach(module)
    module.register_forward_pre_hook(lambda _, args: seen.extend(args))
    first, second = torch.ones(2, 4), torch.ones(2, 4)
    module(first, second)
    assert torch.equal(seen[0], first / 8)
    assert seen[1] is second
    assert torch.equal(first, torch.ones(2, 4)), "the caller's own tensor stays as it is"


def test_keyword_input() -> None:
    """Integers before it and other names beside it stay as they are."""
    module = Named()
    shift_on(module).input_exponent = 2
    positions, bias = torch.arange(3), torch.ones(3)
    hidden, *rest = module(positions, hidden=torch.ones(3), bias=bias)
    assert torch.equal(hidden, torch.full((3,), 4.0))
    assert rest == [positions, bias]


def test_nothing_to_multiply() -> None:
    """A call without floating tensors goes through."""
    module = nn.Embedding(4, 2)
    shift = shift_on(module)
    shift.input_exponent, shift.output_exponent = 5, -1
    ids = torch.arange(4)
    assert torch.equal(module(ids), module.weight[ids] / 2)


def test_tuple_output() -> None:
    """Of a returned tuple the first is multiplied; an empty one, None and a dict are handed on."""
    shift = Shift()
    shift.output_exponent = 1
    other = torch.ones(1)
    found, same = shift(nn.Identity(), (), (torch.ones(1), other))
    assert (found.item(), same) == (2.0, other)
    assert shift(nn.Identity(), (), ()) == ()
    assert shift(nn.Identity(), (), None) is None
    assert shift(nn.Identity(), (), ((torch.ones(1), 3), 4)) == ((torch.full((1,), 2.0), 3), 4)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("given", "returned"), [(10, 0), (0, -16), (-4, -6)])
@torch.no_grad()
def test_norm_in_a_float16_model(kind: str, given: int, returned: int) -> None:
    """A norm computes in float32 what would leave float16, both before and after it, and gives float16 back."""
    model = block(kind, gain=2.0**-returned)  # with 16 bits its weights alone are beyond float16
    shift = shift_on(model.norm)
    shift.input_exponent, shift.output_exponent = given, returned
    truth = model(inputs())
    recast(model, {torch.float32}, torch.float16)
    assert {one.dtype for one in model.norm.parameters()} <= {torch.float32}
    assert model.linear.weight.dtype == torch.float16
    found = model(inputs().half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), truth, rtol=5e-3, atol=5e-3 * float(truth.abs().max()))


def test_input_beyond_float16() -> None:
    """What a norm is given may leave float16's range by the shift alone: 300 times 2**10 does."""
    model = block("llama")
    expected = model.norm(torch.full((1, WIDTH), 300.0))
    shift_on(model.norm).input_exponent = 10
    settle_norms(model, torch.float16)
    found = model.norm(torch.full((1, WIDTH), 300.0, dtype=torch.float16))
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=0)


def test_settled() -> None:
    """In a model that came in 16 bit only norms with a shift go to float32, and their names are told."""
    model = nn.ModuleDict({"one": block("gemma"), "two": block("gemma")}).half()
    shift_on(model["two"].norm).output_exponent = -4
    shift_on(model["one"].linear).output_exponent = -4
    settle_norms(model, torch.float16)
    assert list(norms_in_float32(model)) == ["two.norm.weight"]
    assert {name for name, one in model.named_parameters() if one.dtype == torch.float32} == {"two.norm.weight"}
    assert [name for name, _, _ in shifted_modules(model)] == ["one.linear", "two.norm"]


def test_linear_layer_stays_in_float16() -> None:
    """A shift on a matrix is a product in the model's own dtype: nothing is raised."""
    model = block("llama").half()
    shift_on(model.linear).input_exponent = -2
    settle_norms(model, torch.float16)
    assert model.linear(inputs().half()).dtype == torch.float16
    assert model.linear.weight.dtype == torch.float16


@pytest.mark.parametrize("kind", ["layer-norm", "llama", "gemma"])
def test_inside_an_island(kind: str) -> None:
    """Within a module that is in float32 as a whole, a norm takes float32 and gives float32."""
    model = block(kind)
    shift_on(model.norm).input_exponent = 3
    settle_norms(model, torch.float16)
    seen: list[torch.dtype] = []
    model.norm.register_forward_hook(lambda _, args, output: seen.extend((args[0].dtype, output.dtype)))
    Island(torch.float16).attach(model)
    assert model(inputs().half()).dtype == torch.float16
    assert seen == [torch.float32, torch.float32]


def test_norm_that_is_an_island() -> None:
    """An island around the norm alone casts outside of the shift, whichever came first."""
    model = block("llama").half()
    model.norm.float()
    shift_on(model.norm).output_exponent = -4
    settle_norms(model, torch.float16)
    expected = model(inputs().half())
    Island(torch.float16).attach(model.norm)
    assert torch.equal(model(inputs().half()), expected)


def test_another_dtype() -> None:
    """A model that goes on in bfloat16, then in float32, gets each back from its norms."""
    model = block("llama")
    shift_on(model.norm).input_exponent = 2
    settle_norms(model, torch.float16)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        recast(model, {torch.float16, torch.bfloat16, torch.float32} - {dtype}, dtype)
        assert model(inputs().to(dtype)).dtype == dtype
        assert model.norm.weight.dtype == torch.float32


def test_detached() -> None:
    """A shift that is taken off leaves no hook, and those of others alone."""
    module = nn.LayerNorm(WIDTH)
    mine = module.register_forward_pre_hook(lambda _module, _args, _kwargs: None, with_kwargs=True)
    shift = shift_on(module)
    shift.input_exponent = 1
    assert shift_on(module) is shift_of(module) is shift
    shift.detach(module)
    assert shift_of(module) is None
    assert list(module._forward_pre_hooks) == list(module._forward_pre_hooks_with_kwargs) == [mine.id]
    assert not module._forward_hooks
    shift.detach(module)  # a second time is none
    assert torch.equal(module(inputs()), nn.LayerNorm(WIDTH)(inputs()))


def test_idle() -> None:
    """A new shift multiplies nothing; one that makes up for itself within a norm is not idle."""
    shift = Shift()
    assert shift.is_idle
    shift.input_exponent, shift.output_exponent = 2, -2
    assert not shift.is_idle


@pytest.mark.parametrize("kind", ["layer-norm", "gemma"])
def test_compiled(kind: str) -> None:
    """torch.compile traces a shift whole, and computes the same; bits that are raised later count."""
    model = block(kind)
    shift = shift_on(model.norm)
    shift.input_exponent, shift.output_exponent = 2, -3
    recast(model, {torch.float32}, torch.float16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        expected = model(inputs().half())
        found = compiled(inputs().half())
        assert torch.equal(found, expected)
        shift.output_exponent -= 3


def test_copied() -> None:
    """A deep copy has a shift of its own, at its input as well as at its output."""
    model = block("gemma")
    shift = shift_on(model.norm)
    shift.input_exponent, shift.output_exponent = 1, -1
    settle_norms(model, torch.float16)
    copied = copy.deepcopy(model)
    expected = copied.norm(inputs())
    shift.input_exponent = shift.output_exponent = 5
    assert shift_of(copied.norm) is not shift
    assert torch.equal(copied.norm(inputs()), expected)


def test_pickled() -> None:
    """A model with shifts is read from a file with them in force."""
    model = block("gemma").half()
    shift_on(model.norm).output_exponent = -2
    settle_norms(model, torch.float16)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=False)
    assert torch.equal(read(inputs().half()), model(inputs().half()))
    assert read(inputs().half()).dtype == torch.float16


class Pair(NamedTuple):
    """What blocks of some architectures return."""

    hidden: Tensor
    other: int


class Returns(nn.Module):
    """Returns its input in another form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        """Return it."""
        return self.form(x)


@pytest.mark.parametrize(
    "form", [lambda x: Pair(x, 7), lambda x: [x, 7], lambda x: (x, 7)], ids=["named", "list", "tuple"]
)
def test_form_of_the_output(form: Callable[[Tensor], Any]) -> None:
    """A named tuple stays one, and a list a list; the first of either is multiplied."""
    module = Returns(form)
    shift_on(module).output_exponent = -2
    x = torch.randn(3)
    found = module(x)
    assert type(found) is type(form(x))
    assert torch.equal(found[0], x / 4)
    assert found[1] == 7
