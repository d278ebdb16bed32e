"""Linear modules multiply few rows by compiled code, and nothing else about a model changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.laid_out import IDS, MODELS, load, logits, near, save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from safe_dtype.kernels import row_product
from safe_dtype.models.block_layout import take_back
from safe_dtype.models.forwards.compiled_products import compile_products, products_of
from safe_dtype.models.forwards.module_forward import set_aside
from safe_dtype.numerics import compute_in

pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")

BF16 = torch.bfloat16
Called = list[tuple[int, ...]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """The shapes of what compiled products multiply from now on."""
    shapes: Called = []

    multiplied = row_product._multiplied

    def multiply(x: Tensor, weights: Any, **options: Any) -> Any:
        shapes.extend(tuple(x.shape) for _ in weights)
        return multiplied(x, weights, **options)

    monkeypatch.setattr(row_product, "_multiplied", multiply)
    return shapes


def linear(bias: bool = True, dtype: torch.dtype = BF16) -> nn.Linear:
    """Return a seeded module that is large enough, with compiled products of up to 8 rows."""
    torch.manual_seed(0)
    module = nn.Linear(512, 600, bias=bias).to(dtype).requires_grad_(False)
    assert compile_products(module, dtype, 8) == 1
    return module


def rows(count: int = 2, dtype: torch.dtype = BF16) -> Tensor:
    """Return seeded rows for it."""
    torch.manual_seed(1)
    return torch.randn(count, 512).to(dtype)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"t5"}))
def test_a_model_computes_what_it_did(name: str, tmp_path: Path, called: Called) -> None:
    """With few rows logits are as near to float32's as before, with many they are the same bits; undone, all are."""
    model = load(save(name, tmp_path))
    few, many = logits(model, 3), logits(model, 20)
    linears = [one for one in model.modules() if type(one) is nn.Linear and one.weight.numel() >= 2**18]
    assert compile_products(model, BF16, 8) == len(linears) == sum(products_of(one) is not None for one in linears)
    assert near(logits(model, 3), few)
    assert len(called) == len(linears)
    assert torch.equal(logits(model, 20), many)
    assert take_back(model) == len(linears)
    assert torch.equal(logits(model, 3), few)


def test_generation(tmp_path: Path, called: Called) -> None:
    """Greedy tokens are those of the plain model, as long as no two logits are a rounding apart; beams run as well."""
    model = load(save("qwen3-tied", tmp_path))
    options = {"attention_mask": torch.ones(1, 20, dtype=torch.long), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(IDS, **options)
    compile_products(model, BF16, 8)
    assert model.generate(IDS, **options)[0, 20:23].tolist() == expected[0, 20:23].tolist()
    called.clear()
    model.generate(IDS, num_beams=3, **options)
    assert (3, 1, 512) in called


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_one_module(dtype: torch.dtype, bias: bool, called: Called) -> None:
    """Up to its number of rows a module is compiled, in any shape; beyond it the bits are torch's."""
    module = linear(bias, dtype)
    for x in (rows(1, dtype)[0], rows(8, dtype), rows(8, dtype).view(2, 2, 2, 512)):
        result = module(x)
        assert result.shape == (*x.shape[:-1], 600)
        assert near(result, nn.functional.linear(x, module.weight, module.bias))
    assert len(called) == 3
    for x in (rows(9, dtype), rows(9, dtype)[:0]):
        assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))
    assert len(called) == 3


def test_what_is_written_to_a_weight_counts(called: Called) -> None:
    """Weights are read where they are at each call: written to in place, through `data`, replaced, or in other strides."""
    module, x = linear(), rows()
    module.weight[0] = 0
    module.weight.data[1] = 0
    assert torch.equal(module(x)[:, :2], module.bias[:2].expand(2, 2))
    module.weight = nn.Parameter(module.weight.t().contiguous().t(), requires_grad=False)
    count = len(called)
    assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))
    module.float()
    assert module(x.float()).dtype == torch.float32
    assert len(called) == count


def under_autocast(module: nn.Module, x: Tensor) -> Tensor:
    """Call it under autocast."""
    with torch.autocast("cpu", torch.float16):
        return module(x)


def with_gradients(module: nn.Module, x: Tensor) -> Tensor:
    """Call it where a gradient of its weight is recorded."""
    module.requires_grad_(True)
    module(x).sum().backward()
    assert module.weight.grad is not None
    return module(x).detach()


def counted(module: nn.Module, x: Tensor) -> Tensor:
    """Call it where operations are counted."""
    with FlopCounterMode(display=False) as counter:
        result = module(x)
    assert counter.get_total_flops() == 2 * x.numel() * 600
    return result


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda module, x: torch.vmap(module)(x), id="vmap"),
        pytest.param(lambda module, x: torch.jit.trace(module, (x,), check_trace=False)(x), id="trace"),
        pytest.param(lambda module, x: torch.export.export(module, (x,), strict=False).module()(x), id="export"),
        pytest.param(lambda module, x: torch.func.functional_call(copy.deepcopy(module), {}, (x,)), id="deepcopy"),
        pytest.param(lambda module, x: pickle.loads(pickle.dumps(module))(x), id="pickle"),
        pytest.param(lambda module, x: torch.func.jvp(module, (x,), (x,))[0], id="jvp"),
        pytest.param(under_autocast, id="autocast"),
        pytest.param(with_gradients, id="gradients"),
        pytest.param(counted, id="flop-counter"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_where_somebody_looks_on(call: Callable[[nn.Module, Tensor], Tensor], called: Called) -> None:
    """Graphs, transforms, copies, autocast and gradients are those of a plain module, bit for bit."""
    module, x = linear(), rows()
    plain = nn.Linear(512, 600).to(BF16).requires_grad_(False)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(call(module, x), call(plain, x))
    assert not called


def test_contexts_in_which_it_is_compiled(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    """In inference mode, in ours and under a default device it is; a patched `F.linear` is called as ever."""
    module, x = linear(), rows()
    for context in (
        torch.inference_mode(),
        compute_in("float32", when=lambda _, count: count >= 9),
        torch.device("cpu"),
    ):
        with context:
            result = module(x)
        assert result.device.type == "cpu"
    assert len(called) == 3
    own: list[Any] = []
    plain = nn.functional.linear

    def linear_of_a_user(*args: Any, **kwargs: Any) -> Any:
        own.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "linear", linear_of_a_user)
    assert torch.equal(module(x), plain(x, module.weight, module.bias))
    assert len(own) == 1


def test_hooks_and_names(called: Called) -> None:
    """The module stays `nn.Linear`, its hooks run, and what it holds is found under its names only."""
    module, seen = linear(), []
    module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    result = module(rows())
    assert seen[0] is result
    assert type(module) is nn.Linear
    assert set(module.state_dict()) == {"weight", "bias"}
    assert "forward" not in dict(vars(module))
    put_on_again = set_aside(module)
    module(rows())
    assert len(called) == 1
    put_on_again()
    module(rows())
    assert len(called) == 2


def test_offloaded_modules_are_left_alone() -> None:
    """A module whose forward somebody has replaced computes in that way, and small ones are quicker in torch's."""
    model = nn.Sequential(nn.Linear(512, 600), nn.Linear(600, 512), nn.Linear(512, 4)).to(BF16)
    model[0].forward = model[0].forward
    assert compile_products(model, BF16, 8) == 1
    assert products_of(model[1]) is not None
    assert compile_products(model, torch.float64, 8) == 0


@pytest.mark.parametrize("wrong", [rows(1)[:, :511], rows(1).float(), rows(1).int()], ids=["width", "dtype", "whole"])
def test_what_torch_refuses(wrong: Tensor) -> None:
    """What plain torch refuses, it refuses in its own words."""
    module = linear()
    with pytest.raises(RuntimeError) as plain:
        nn.functional.linear(wrong, module.weight, module.bias)
    with pytest.raises(RuntimeError) as refused:
        module(wrong)
    assert str(refused.value) == str(plain.value)


def test_a_module_without_its_bias() -> None:
    """What is missing in a module is missed, as by torch."""
    module = linear()
    del module.bias
    with pytest.raises(AttributeError, match="bias"):
        module(rows())


def test_rows_that_lie_negated(called: Called) -> None:
    """Rows that torch keeps in memory with the other sign are multiplied as what they are, by torch."""
    module, x = linear(), rows()
    lying = torch._neg_view(-x)
    assert torch.equal(module(lying), nn.functional.linear(lying, module.weight, module.bias))
    assert not called
