"""Norms, gates and rotations of models are compiled, and nothing else about a model changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.forwards.compiled import BF16, IDS, MODELS, compile_all, counted, greedy, model_of
from torch import nn

from safe_dtype.kernels import row_product
from safe_dtype.models.block_layout import take_back
from safe_dtype.models.forwards import gated_forward, norm_forward, rotary_forward

pytest.importorskip("llvmlite", reason="forwards are compiled by llvmlite, of the extra `fast`")

Calls = dict[str, list[Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is computed by compiled code from now on."""
    return {
        "norms": counted(monkeypatch, norm_forward, "normalize_rows"),
        "gates": counted(monkeypatch, gated_forward, "multiply_rows_gated"),
        "rotations": counted(monkeypatch, rotary_forward, "turn"),
        "products": counted(monkeypatch, row_product, "_multiplied"),
    }


def cleared(calls: Calls) -> Calls:
    """Forget what was called."""
    for one in calls.values():
        one.clear()
    return calls


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return the logits of a model."""
    result: torch.Tensor = model(ids, use_cache=False).logits
    return result


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_it_did(name: str, calls: Calls) -> None:
    """Greedy tokens are plain's, few rows and many; undone, every bit is plain's."""
    model = model_of(name)
    tokens, many, few = greedy(model), logits(model), logits(model, IDS[:, :3])
    norms = 9 if name == "qwen3" else 5
    assert compile_all(model) == (norms, 2, 15, 2)
    assert greedy(model) == tokens
    cleared(calls)
    for ids, before in ((IDS, many), (IDS[:, :3], few)):
        after = logits(model, ids)
        assert float((after - before).abs().max()) <= 0.02 * float(before.abs().max())
    assert {kind: len(one) for kind, one in calls.items()} == {
        "norms": 2 * norms, "gates": 2, "rotations": 2, "products": 2 * (3 + 1 + 1 + 1) + 1,
    }  # fmt: skip
    assert take_back(model) == norms + 2 + 15 + 2
    assert torch.equal(logits(model), many)
    assert torch.equal(logits(model, IDS[:, :3]), few)


@pytest.mark.parametrize("name", MODELS)
def test_is_as_near_to_float32(name: str) -> None:
    """The logits' divergence from float32's is not above plain bfloat16's, over a batch of texts."""
    torch.manual_seed(1)
    ids = torch.randint(0, 600, (24, 8))
    plain, compiled = model_of(name), model_of(name)
    compile_all(compiled)
    exact = model_of(name).float()

    def divergence(model: Any) -> float:
        target = torch.log_softmax(logits(exact, ids), -1)
        return float((target.exp() * (target - torch.log_softmax(one_by_one(model, ids), -1))).sum(-1).mean())

    assert divergence(compiled) <= 1.02 * divergence(plain)


def one_by_one(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of texts that are read by a token at a time, behind a cache."""
    cache, rows = None, []
    with torch.inference_mode():
        for position in range(ids.shape[1]):
            parts = [model(part[:, position : position + 1], past_key_values=one, use_cache=True)
                     for part, one in zip(ids.split(8), cache or [None] * 3, strict=True)]  # fmt: skip
            cache = [part.past_key_values for part in parts]
            rows.append(torch.cat([part.logits for part in parts]).float())
    return torch.cat(rows, 1)


def trained(model: nn.Module) -> Any:
    """Return a gradient."""
    model.requires_grad_(True).train()
    logits(model, IDS[:, :3]).float().square().mean().backward()
    return model.model.norm.weight.grad, model.model.layers[0].self_attn.q_proj.weight.grad


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(
            lambda model: logits(torch.compile(model, backend="eager"), IDS[:, :3]),
            id="compile",
            marks=pytest.mark.needs("torch>=2.13"),  # torch 2.6 cannot compile the plain model of transformers 5.16
        ),
        pytest.param(
            lambda model: torch.func.functional_call(copy.deepcopy(model), {}, (IDS[:, :3],)).logits, id="copy"
        ),
        pytest.param(lambda model: logits(pickle.loads(pickle.dumps(model)), IDS[:, :3]), id="pickle"),
        pytest.param(trained, id="training"),
        pytest.param(
            lambda model: torch.export.export(
                model.model.norm, (torch.ones(1, 2, 512, dtype=BF16),), strict=False
            ).module()(torch.full((1, 2, 512), 0.3, dtype=BF16)),
            id="export",
        ),
    ],
)
def test_where_somebody_looks_on(look: Callable[[Any], Any], calls: Calls) -> None:
    """Graphs, copies and training are those of a plain model, bit for bit."""
    plain, model = model_of("qwen3"), model_of("qwen3")
    compile_all(model)
    torch.testing.assert_close(look(model), look(plain), rtol=0, atol=0)
    assert not any(calls.values())


def of_class(model: nn.Module, *names: str) -> list[nn.Module]:
    """Return the modules of these names."""
    return [module for path, module in model.named_modules() if path.rpartition(".")[2] in names]


def with_hook(model: nn.Module, name: str) -> Any:
    """Double what modules of that name return, by a hook."""
    for module in of_class(model, name):
        module.register_forward_hook(lambda _module, _args, output: 2 * output)
    return logits(model, IDS[:, :3])


def with_other_input(model: nn.Module, name: str) -> Any:
    """Double what modules of that name get, by a hook."""
    for module in of_class(model, name):
        module.register_forward_pre_hook(lambda _module, args: (2 * args[0],))
    return logits(model, IDS[:, :3])


def doubled_in_place(tensor: torch.Tensor) -> None:
    """Write to a tensor."""
    tensor.mul_(2)


def written_between(model: nn.Module, name: str) -> Any:
    """Write to what modules of that name have got, after they have multiplied it."""
    for module in of_class(model, name):
        module.register_forward_hook(lambda _module, args, _output: doubled_in_place(args[0]))
    with torch.inference_mode():
        return logits(model, IDS[:, :3])


class Doubled(nn.Linear):
    """A subclass of a user."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Multiply, and double."""
        return 2 * super().forward(input)


def of_a_subclass(model: nn.Module, name: str) -> Any:
    """Have modules of that name be of a user's class."""
    for module in of_class(model, name):
        module.__class__ = Doubled
    return logits(model, IDS[:, :3])


class Adapter(nn.Module):
    """A low-rank adapter around a linear module."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        torch.manual_seed(3)
        self.a = nn.Parameter(0.1 * torch.randn(4, base.in_features).to(BF16), requires_grad=False)
        self.b = nn.Parameter(0.1 * torch.randn(base.out_features, 4).to(BF16), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the adapter's product."""
        result: torch.Tensor = self.base_layer(x) + (x @ self.a.T) @ self.b.T
        return result


def adapted(model: nn.Module, name: str) -> Any:
    """Put an adapter around modules of that name."""
    for parent in list(model.modules()):
        if isinstance(getattr(parent, name, None), nn.Linear):
            setattr(parent, name, Adapter(getattr(parent, name)))
    return logits(model, IDS[:, :3])


def written_to(model: nn.Module, name: str) -> Any:
    """Write to the weights of modules of that name while the first of the group multiplies."""
    for leader, module in zip(of_class(model, "q_proj"), of_class(model, name), strict=False):
        leader.register_forward_hook(lambda _module, _args, _output, other=module: doubled_in_place(other.weight))
    return logits(model, IDS[:, :3])


def with_own_forward(model: nn.Module, name: str) -> Any:
    """Put a user's function in the place of the forward of modules of that name."""
    for module in of_class(model, name):
        own = module.forward
        module.forward = lambda x, own=own: 2 * own(x)
    return logits(model, IDS[:, :3])


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize(
    "change", [with_hook, with_other_input, written_between, of_a_subclass, adapted, with_own_forward]
)
def test_what_users_do_to_a_linear_module(change: Callable[[nn.Module, str], Any], name: str) -> None:
    """A hook, a subclass, an adapter or another forward has the effect that it has on a plain model."""
    plain, model = model_of("llama"), model_of("llama")
    before = logits(plain, IDS[:, :3])
    compile_all(model)
    logits(model, IDS[:, :3])
    expected, changed = change(plain, name), change(model, name)
    assert float((changed - expected).abs().max()) <= 0.02 * float(expected.abs().max())
    if change is not written_between or name in ("q_proj", "k_proj", "gate_proj"):
        assert float((expected - before).abs().max()) > 0.05 * float(before.abs().max())


@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_weights_that_are_written_to_meanwhile(name: str) -> None:
    """What a hook of one module writes to the weight of another counts, though both are multiplied at once."""
    plain, model = model_of("qwen2"), model_of("qwen2")
    compile_all(model)
    assert float((written_to(model, name) - written_to(plain, name)).abs().max()) <= 0.05


@pytest.mark.parametrize("name", ["input_layernorm", "norm", "act_fn", "mlp", "self_attn"])
@pytest.mark.parametrize("what", ["hook", "forward", "class"])
def test_what_users_do_to_other_modules(what: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook, a forward of its own or a patch of the class has the effect that it has on a plain model."""
    plain, model = model_of("llama"), model_of("llama")
    compile_all(model)

    def double(output: Any) -> Any:
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    def changed(one: nn.Module) -> torch.Tensor:
        for module in of_class(one, name):
            if what == "hook":
                module.register_forward_hook(lambda _module, _args, output: double(output))
            elif what == "forward":
                own = module.forward
                module.forward = lambda *args, own=own, **kwargs: double(own(*args, **kwargs))
        return logits(one, IDS[:, :3])

    if what == "class":
        kind = type(of_class(model, name)[0])
        own = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, *args, **kwargs: double(own(self, *args, **kwargs)))
    expected = changed(plain)
    assert float((changed(model) - expected).abs().max()) <= 0.02 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["apply_rotary_pos_emb", "rotate_half"])
def test_a_function_that_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    """What others put in the place of a function of a model's file is called."""
    from transformers.models.llama import modeling_llama

    plain, model = model_of("llama"), model_of("llama")
    compile_all(model)
    own = getattr(modeling_llama, name)
    monkeypatch.setattr(modeling_llama, name, lambda *args: own(*(2 * one for one in args)))
    expected = logits(plain)
    assert torch.equal(logits(model).isnan(), expected.isnan())
    assert float((logits(model) - expected).abs().max()) <= 0.02 * float(expected.abs().max())
    assert not calls["rotations"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Models in another dtype go on as plain ones."""
    plain, model = model_of("qwen3"), model_of("qwen3")
    compile_all(model)
    expected = logits(plain.to(dtype))
    assert float((logits(model.to(dtype)) - expected).abs().max()) <= 0.01 * float(expected.abs().max())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("part", "name"), [("post_attention_layernorm", "weight"), ("mlp", "up_proj")])
def test_a_class_that_finds_its_parts_in_another_way(part: str, name: str, when: str) -> None:
    """A module that is given a class with a property in the place of a part computes by it, whenever it is given that."""
    changed, plain = model_of("llama"), model_of("llama")
    for model in (changed, plain):
        module = model.model.layers[0].get_submodule(part)
        if model is changed and when == "after":
            compile_all(model)
        module.__class__ = _with_zeros(type(module), name)
        if model is changed and when == "before":
            compile_all(model)
    shown = []
    for model in (changed, plain):
        of_part = model.model.layers[0].get_submodule(part)
        shown.append(of_part(torch.ones(1, 2, 512, dtype=BF16)))
    assert torch.equal(*shown)
    assert not shown[0].any()


def _with_zeros(kind: type[nn.Module], name: str) -> type[nn.Module]:
    def part(self: Any) -> Any:
        if name == "weight":
            return torch.zeros(512, dtype=BF16)
        return lambda x: torch.zeros(*x.shape[:-1], 768, dtype=BF16)

    return type(kind.__name__, (kind,), {name: property(part)})
