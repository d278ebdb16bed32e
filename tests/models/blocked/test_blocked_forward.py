"""A laid-out module is one of torch's own: what looks at its class, takes its weight apart or copies it finds it so."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from numerics.laid_out import MARKS, load, logits, near, save
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from safe_dtype import guard
from safe_dtype.models.block_layout import lay_out, take_back

pytestmark = MARKS


BF16 = torch.bfloat16


def first(model: Any) -> nn.Linear:
    """Return one linear module."""
    return model.model.decoder.layers[0].fc1


def test_classes_and_what_is_in_them(model: Any, plain: Any) -> None:
    """Every module has the class of the plain one, and shows the same attributes."""
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        assert type(one) is type(other)
        assert one.__class__.__name__ == other.__class__.__name__
        assert list(vars(one)) == list(vars(other))
        assert len(vars(one)) == len(vars(other))
        assert dict(zip(vars(one).keys(), vars(one).values(), strict=True)).keys() == vars(other).keys()


def test_a_method_that_is_inspected(tied: tuple[Any, Any]) -> None:
    """Signature, function and module of its forward are those of the class's."""
    for name in ("model.layers.0.mlp.up_proj", "model.embed_tokens"):
        one, found, expected = tied[0].get_submodule(name), *(each.get_submodule(name).forward for each in tied)
        assert inspect.signature(found) == inspect.signature(expected)
        assert found.__func__ is inspect.unwrap(found).__func__ is expected.__func__
        assert found.__self__ is inspect.unwrap(found).__self__ is one
        assert found.__name__ == expected.__name__
        assert found.__code__ is expected.__code__


# In a strict export torch 2.6 finds no parameters of a module with a forward of its own, whoever has put it there.
@pytest.mark.parametrize("strict", [pytest.param(True, marks=pytest.mark.needs("torch>=2.13")), False])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.embed_tokens"])
def test_export(name: str, strict: bool, tied: tuple[Any, Any]) -> None:
    """A laid-out module is exported as a plain one, alone too."""
    module, expected = (one.get_submodule(name) for one in tied)
    x = torch.tensor([4, 5]) if name.endswith("tokens") else torch.randn(2, 512, dtype=BF16)
    with torch.no_grad():
        assert torch.equal(torch.export.export(module, (x,), strict=strict).module()(x), expected(x))


@pytest.mark.parametrize("guarded", [False, True])
def test_layers_are_compiled_once(guarded: bool, tied: tuple[Any, Any]) -> None:
    """What is compiled layer by layer is compiled for one of them, and the others are as it is."""
    model, plain = tied
    if guarded:
        guard(model)
    graphs: list[Any] = []

    def count(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    expected = logits(plain)
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.mlp.compile(backend=count, fullgraph=True)
    assert near(logits(model), expected)
    # Torch 2.6 knows a method by its identity, and each layer's forward for another one.
    assert len(graphs) == (1 if Version(torch.__version__) >= Version("2.13") else len(model.model.layers))
    model.model.layers[1].mlp.up_proj.weight.data[3] = 5
    plain.model.layers[1].mlp.up_proj.weight.data[3] = 5
    assert near(logits(model), logits(plain))
    for one in tied:
        one.model.layers[1].mlp.up_proj.forward = one.model.layers[1].mlp.gate_proj.forward
    assert near(logits(model), logits(plain))


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.embed_tokens"])
def test_what_compiles_from_source_meets_a_clear_word(name: str, tied: tuple[Any, Any]) -> None:
    """`torch.jit.script` says what to do, and doing it helps."""
    module, expected = (one.get_submodule(name) for one in tied)
    with pytest.raises(AttributeError, match="script a copy"):
        torch.jit.script(module)
    x = torch.tensor([4, 5]) if name.endswith("tokens") else torch.randn(2, 512, dtype=BF16)
    with torch.no_grad():
        assert torch.equal(torch.jit.script(copy.deepcopy(module))(x), expected(x))


class Inside(torch.fx.Tracer):
    """Goes into every module."""

    def is_leaf_module(self, *_: Any) -> bool:
        """No module is a leaf."""
        return False


@pytest.mark.parametrize("tracer", [torch.fx.Tracer, Inside])
@pytest.mark.parametrize("name", ["model.layers.0.mlp", "model.embed_tokens"])
def test_symbolic_traces(name: str, tracer: type[torch.fx.Tracer], tied: tuple[Any, Any]) -> None:
    """`torch.fx` records the calls of plain modules."""
    graphs = [str(tracer().trace(one.get_submodule(name))) for one in tied]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("inplace", [True, False])
def test_dynamic_quantization(inplace: bool, model: Any, folder: Path) -> None:
    """`quantize_dynamic` quantizes what it quantizes in a plain model, to the same numbers, and float32 stays as it is."""
    folder32 = save("opt", folder.parent / "opt32", torch.float32)
    found, expected = load(folder32), load(folder32)
    assert lay_out(found, rounded=BF16).modules == 7
    quantize = torch.ao.quantization.quantize_dynamic
    found, expected = (quantize(one, {nn.Linear}, torch.qint8, inplace=inplace) for one in (found, expected))
    assert [type(one) for one in found.modules()] == [type(one) for one in expected.modules()]
    assert sum(type(one) is nn.Linear for one in found.modules()) == 0
    assert torch.equal(logits(found), logits(expected))


class Doubling(nn.Linear):
    """A class that somebody gives a module later."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
        """Multiply, and double."""
        return 2 * super().forward(input)


@pytest.mark.parametrize("rows", [1, 20])
def test_another_class(rows: int, model: Any, plain: Any) -> None:
    """A module that is given another class computes as that one says, from the plain weight."""
    for one in (model, plain):
        logits(one, rows)
        first(one).__class__ = Doubling
    x = torch.randn(rows, 512, dtype=BF16)
    with torch.no_grad():
        assert torch.equal(first(model)(x), first(plain)(x))
    assert "forward" not in vars(first(model))


def test_a_forward_of_somebody_else(model: Any, plain: Any) -> None:
    """A forward that is wrapped, replaced or deleted is that of a plain module."""
    x = torch.randn(3, 512, dtype=BF16)
    found, expected = first(model), first(plain)
    with torch.no_grad():
        for one in (found, expected):
            one.forward = lambda x, forward=one.forward: 2 * forward(x)
        assert near(found(x), expected(x), 0.01)
        assert take_back(model)
        assert torch.equal(found(x), expected(x))
        for one in (found, expected):
            del one.forward
        assert torch.equal(found(x), expected(x))
        assert set(vars(found)) == set(vars(expected))


@pytest.mark.parametrize(("owner", "name"), [(nn.Linear, "forward"), (F, "linear"), (nn.Embedding, "forward")])
def test_a_forward_patched_for_every_module(
    owner: Any, name: str, model: Any, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody puts in the place of torch's own is called, as often as in a plain model."""
    calls = []
    original = getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    expected = logits(plain, 1)
    monkeypatch.setattr(owner, name, counting)
    logits(plain, 1)
    count = len(calls)
    assert count
    found = logits(model, 1)
    assert len(calls) == 2 * count
    assert near(found, expected)


def _in_dict(module: nn.Module) -> None:
    module.__dict__["weight"] = module.weight.data * 2


def _bias_in_dict(module: nn.Module) -> None:
    module.__dict__["bias"] = module.bias.data + 1


def _buffer(module: nn.Module) -> None:
    weight = module._parameters.pop("weight")
    module.register_buffer("weight", weight.data * 2)


def _flat(module: nn.Module) -> None:
    flat = torch.cat([module._parameters.pop(name).data.reshape(-1) for name in ("weight", "bias")])
    module.weight, module.bias = flat[: 512 * 1024].view(1024, 512), flat[512 * 1024 :]


class Halves(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Halve."""
        return weight / 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is halved."""
        return weight


APART: dict[str, Callable[[nn.Linear], object]] = {
    "prune": lambda one: prune.l1_unstructured(one, "weight", 0.5),
    "prune-rows": lambda one: prune.ln_structured(one, "weight", 0.5, n=2, dim=0),
    "prune-bias": lambda one: prune.l1_unstructured(one, "bias", 0.5),
    "prune-for-good": lambda one: prune.remove(prune.l1_unstructured(one, "weight", 0.5), "weight"),
    "parametrize": lambda one: parametrize.register_parametrization(one, "weight", Halves()),
    "parametrize-bias": lambda one: parametrize.register_parametrization(one, "bias", Halves()),
    "parametrize-for-good": lambda one: (
        parametrize.register_parametrization(one, "weight", Halves()),
        parametrize.remove_parametrizations(one, "weight"),
    ),
    "weight-norm": lambda one: parametrizations.weight_norm(one),
    "weight-norm-of-old": lambda one: nn.utils.weight_norm(one),
    "spectral-norm-of-old": lambda one: _seeded(nn.utils.spectral_norm, one),
    "plain-attributes": _flat,
    "plain-weight": lambda one: setattr(one, "weight", one._parameters.pop("weight").data * 2),
    "buffer": _buffer,
    "weight-in-the-dict": _in_dict,
    "bias-in-the-dict": _bias_in_dict,
    "no-bias": lambda one: setattr(one, "bias", None),
    "another-bias": lambda one: setattr(one, "bias", nn.Parameter(torch.ones(1024, dtype=BF16))),
    "meta-and-back": lambda one: one.to("meta").to_empty(device="cpu").load_state_dict(
        {"weight": torch.ones(1024, 512), "bias": torch.ones(1024)}
    ),
    "lazily-assigned": lambda one: one.load_state_dict(
        {"weight": torch.ones(1024, 512, dtype=BF16), "bias": torch.ones(1024, dtype=BF16)}, assign=True
    ),
}  # fmt: skip


def _seeded(change: Callable[[nn.Module], object], module: nn.Module) -> None:
    torch.manual_seed(0)
    change(module)


@pytest.mark.parametrize("guarded", [False, True], ids=["laid-out", "guarded"])
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("change", APART.values(), ids=APART)
def test_a_weight_that_lies_elsewhere(
    change: Callable[[nn.Linear], object], rows: int, guarded: bool, model: Any, plain: Any
) -> None:
    """Pruned, reparametrized, sharded or taken apart, a module gives what a plain one gives."""
    if guarded:
        guard(model)
    logits(model, rows)
    for one in (model, plain):
        change(first(one))
    assert near(logits(model, rows), logits(plain, rows))
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("change", ["prune", "parametrize", "weight-norm-of-old", "plain-attributes"])
def test_a_weight_that_lies_elsewhere_from_the_start(change: str, folder: Path) -> None:
    """What is so before it is laid out is left alone."""
    model, plain = load(folder), load(folder)
    for one in (model, plain):
        APART[change](first(one))
    assert lay_out(model).modules == 6
    assert near(logits(model), logits(plain))
    assert vars(first(model)).keys() == vars(first(plain)).keys()


def test_orthogonal(folder: Path) -> None:
    """An orthogonal parametrization, which torch has for float32 only."""
    folder32 = save("opt", folder.parent / "opt-orthogonal", torch.float32)
    model, plain = load(folder32), load(folder32)
    lay_out(model, rounded=BF16)
    for one in (model, plain):
        parametrizations.orthogonal(one.model.decoder.layers[0].self_attn.q_proj)
    assert near(logits(model), logits(plain))
