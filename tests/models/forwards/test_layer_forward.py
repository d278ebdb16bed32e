"""Steps of few rows are computed layer by layer, with the bits of the modules' own calls, and whoever looks on sees these."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models.forwards.compiled import BF16, IDS, MODELS, compile_all, counted, greedy, model_of
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from safe_dtype.guarding.blame import module_raising
from safe_dtype.guarding.diagnosis.module_call import modules_in
from safe_dtype.models.block_layout import take_back
from safe_dtype.models.forwards import gated_forward, layer_forward, norm_forward
from safe_dtype.models.forwards.layer_forward import compile_layers
from safe_dtype.models.forwards.module_forward import take_off

pytest.importorskip("llvmlite", reason="forwards are compiled by llvmlite, of the extra `fast`")


def compiled(name: str, dtype: torch.dtype = BF16) -> Any:
    """Return a model that is compiled, its layers too."""
    model = model_of(name, dtype)
    compile_all(model, dtype)
    assert compile_layers(model, 8) == 2
    return model


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that are computed in one go from now on."""
    return counted(monkeypatch, layer_forward, "_computed")


def steps(model: Any, rows: int = 1, count: int = 3) -> torch.Tensor:
    """Return the logits of steps of `rows` sequences after a prompt of each."""
    torch.manual_seed(3)
    cache, ids = DynamicCache(config=model.config), torch.randint(0, 600, (rows, 20))
    with torch.inference_mode():
        model(ids, past_key_values=cache, use_cache=True)
        return torch.cat([model(ids[:, :1], past_key_values=cache, use_cache=True).logits for _ in range(count)], 1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_bit_is_the_modules(name: str, rows: int, layers: list[Any]) -> None:
    """Steps have the bits of what the modules compute when each is called, one row or some."""
    model = compiled(name)
    result = steps(model, rows)
    assert len(layers) == 3 * 2
    for layer in model.model.layers:
        take_off(layer)
    assert torch.equal(steps(model, rows), result)
    assert len(layers) == 3 * 2


@pytest.mark.parametrize("name", MODELS)
def test_arguments_for_attention_alone(name: str, layers: list[Any]) -> None:
    """What is handed on to attention may have any name: continuous batching hands it its pool as `cache`."""
    model = compiled(name)
    with torch.no_grad():
        plain = model(IDS[:, :3], use_cache=False).logits
        assert torch.equal(model(IDS[:, :3], use_cache=False, cache="a pool").logits, plain)
    assert layers


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_plains(name: str, layers: list[Any]) -> None:
    """Greedy tokens are those of the plain model, in the forms of generation that roll a cache back as well."""
    plain, model = model_of(name), compiled(name)
    for options in ({}, {"prompt_lookup_num_tokens": 3}, {"cache_implementation": "static"}):
        assert greedy(model, **options) == greedy(plain, **options), options
    assert layers


@pytest.mark.parametrize("name", MODELS)
def test_beams_are_the_modules(name: str, layers: list[Any]) -> None:
    """Beams are those of modules that are called one by one; between two of a plain model's a rounding may decide."""
    modules, model = model_of(name), compiled(name)
    compile_all(modules)
    assert greedy(model, num_beams=2) == greedy(modules, num_beams=2)
    assert layers


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("", "self_attn"),
        ("", "mlp"),
        ("", "input_layernorm"),
        ("self_attn", "q_proj"),
        ("self_attn", "q_norm"),
        ("mlp", "down_proj"),
    ],
)
@pytest.mark.parametrize("is_gone", [False, True])
def test_what_stands_in_the_place_of_a_module(owner: str, name: str, layers: list[Any], *, is_gone: bool) -> None:
    """A function that is found by the name of a module is called, whether the module is there still or not."""
    results = []
    for is_compiled in (True, False):
        model = compiled("qwen3") if is_compiled else model_of("qwen3")
        if not is_compiled:
            compile_all(model)
        for layer in model.model.layers:
            part = layer.get_submodule(owner)
            module = part.get_submodule(name)
            if is_gone:
                del part._modules[name]
            part.__dict__[name] = _doubled(module)
        results.append(steps(model))
    assert torch.equal(*results)
    assert not layers


def _doubled(module: nn.Module) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        output = module(*args, **kwargs)
        return (output[0] * 2, output[1]) if isinstance(output, tuple) else output * 2

    return call


def test_a_property_of_the_class(layers: list[Any]) -> None:
    """A class that makes a part of a layer at each look keeps its forward."""
    model, plain = model_of("qwen3"), model_of("qwen3")
    for other in (model, plain):
        for layer in other.model.layers:
            kind: Any = type(layer.self_attn)
            doubled = property(lambda self: _doubled(self._modules["k_proj"]))
            layer.self_attn.__class__ = type("Doubling", (kind,), {"k_proj": doubled})
        compile_all(other)
    assert compile_layers(model, 8) == 0
    assert torch.equal(steps(model), steps(plain))
    assert not layers


def test_undone(layers: list[Any]) -> None:
    """Undone, and in copies and pickles, layers are plain."""
    model = compiled("qwen3")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any("forward" in module.__dict__ for module in other.modules())
    take_back(model)
    steps(model)
    assert not layers


def test_in_a_graph(layers: list[Any]) -> None:
    """In a graph of `torch.compile` a layer is what its class computes."""
    plain, model = (one.model for one in (model_of("qwen3"), compiled("qwen3")))
    x = torch.randn(1, 1, 512, dtype=BF16)
    with torch.no_grad():
        tables = plain.rotary_emb(x, IDS[:, :1])
        found = torch.compile(model.layers[0], backend="eager")(x, position_embeddings=tables)
        assert torch.equal(found, plain.layers[0](x, position_embeddings=tables))
    assert not layers
    torch.compiler.reset()


def test_only_few_rows_without_gradients(layers: list[Any]) -> None:
    """Prompts, steps that may be asked for gradients, and those in training are the class's own."""
    model = compiled("llama")
    with torch.no_grad():
        model(IDS, use_cache=False)
    model(IDS[:, :1], use_cache=False)
    assert not layers
    with torch.no_grad():
        model.train()(IDS[:, :1], use_cache=False)
        assert not layers
        model.eval()(IDS[:, :8], use_cache=False)
    assert len(layers) == 2


PARTS = (
    "", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_norm",
    "self_attn.o_proj", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj",
)  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_hooks_are_called(part: str) -> None:
    """A hook on any module of a layer is called at each step, and what it returns is what counts."""
    model, called = compiled("qwen3"), []

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        called.append(part)
        return (
            tuple(2 * one if isinstance(one, torch.Tensor) else one for one in output)
            if isinstance(output, tuple)
            else 2 * output
        )

    plain = model_of("qwen3")
    handles = [one.model.layers[1].get_submodule(part).register_forward_hook(hook) for one in (model, plain)]
    expected = steps(plain)
    of_plain = len(called)
    called.clear()
    found = steps(model)
    assert len(called) == of_plain
    assert float((found - expected).abs().max()) <= 0.02 * float(expected.abs().max())
    for handle in handles:
        handle.remove()


@contextmanager
def hook_on_all() -> Iterator[list[type]]:
    """Have every call of a module listed."""
    called: list[type] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(type(module)))
    try:
        yield called
    finally:
        handle.remove()


def test_hooks_on_all_modules_are_called() -> None:
    """Who listens to all modules hears the same from a compiled model."""
    plain, model = model_of("mistral"), compiled("mistral")
    heard = []
    for one in (plain, model):
        with hook_on_all() as called:
            steps(one)
        heard.append(called)
    assert heard[0] == heard[1]


def replaced_forward(layer: Any) -> None:
    """Replace the forward of an attention module."""
    original = layer.self_attn.forward
    layer.self_attn.forward = lambda *args, **kwargs: tuple(
        None if one is None else 2 * one for one in original(*args, **kwargs)
    )


def replaced_module(layer: Any) -> None:
    """Put a module of another class in the place of a linear one."""
    layer.self_attn.v_proj = nn.Sequential(layer.self_attn.v_proj, nn.Hardtanh(-0.01, 0.01))


def other_weight(layer: Any) -> None:
    """Write to a weight."""
    layer.mlp.down_proj.weight.data.mul_(2)


def other_parameter(layer: Any) -> None:
    """Put another parameter in the place of a norm's."""
    layer.input_layernorm.weight = nn.Parameter(2 * layer.input_layernorm.weight.data, requires_grad=False)


def other_class(layer: Any) -> None:
    """Give an MLP a class whose forward is another."""

    class Doubled(type(layer.mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)  # type: ignore[no-any-return]

    layer.mlp.__class__ = Doubled


@pytest.mark.parametrize("change", [replaced_forward, replaced_module, other_weight, other_parameter, other_class])
def test_what_changes_counts(change: Callable[[Any], None]) -> None:
    """What somebody changes in a layer after it was compiled is what it computes."""
    plain, model = model_of("qwen2"), compiled("qwen2")
    before = steps(model)
    for one in (plain, model):
        change(one.model.layers[0])
    expected, found = steps(plain), steps(model)
    assert float((found - expected).abs().max()) <= 0.02 * float(expected.abs().max())
    assert not torch.equal(found, before)


def test_functions_of_the_file_are_asked(monkeypatch: pytest.MonkeyPatch, layers: list[Any]) -> None:
    """A function that somebody puts into the file of the model is called, also for a step."""
    from transformers.models.qwen3 import modeling_qwen3

    model, called = compiled("qwen3"), []
    original = modeling_qwen3.apply_rotary_pos_emb

    def patched(*args: Any, **kwargs: Any) -> Any:
        called.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(modeling_qwen3, "apply_rotary_pos_emb", patched)
    steps(model, count=1)
    assert len(layers) == 2
    assert len(called) == 2 * 2


def test_outputs_of_layers_are_captured() -> None:
    """What transformers records of layers and of attention is recorded."""
    plain, model = model_of("qwen3"), compiled("qwen3")
    for one in (plain, model):
        one.set_attn_implementation("eager")
    with torch.inference_mode():
        expected, found = (
            one(IDS[:, :3], use_cache=False, output_hidden_states=True, output_attentions=True)
            for one in (plain, model)
        )
    assert len(found.hidden_states) == 3
    assert len(found.attentions) == 2
    for one, other in zip(
        (*found.hidden_states, *found.attentions), (*expected.hidden_states, *expected.attentions), strict=True
    ):
        assert float((one - other).abs().max()) <= 0.02 * float(other.abs().max())


def attention_of_prompts(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Attend as torch does, and only in prompts."""
    if query.shape[2] == 1:
        raise RuntimeError("\"attention of one row\" not implemented for 'BFloat16'")
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *args, **kwargs)


def test_an_error_in_attention_is_its_own(layers: list[Any]) -> None:
    """What raises in the attention of a step is blamed on the attention, within its layer."""
    model = compiled("qwen3")
    AttentionInterface.register("of_prompts", attention_of_prompts)
    AttentionMaskInterface.register("of_prompts", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation("of_prompts")
    with pytest.raises(RuntimeError, match="one row") as caught:
        steps(model)
    first = model.model.layers[0]
    assert layers
    assert module_raising(model, caught.value.__traceback__) is first.self_attn
    assert modules_in(model, caught.value.__traceback__)[:2] == [first.self_attn, first]


@pytest.mark.parametrize(
    ("owner", "kernel", "blamed"),
    [
        (norm_forward, "normalize_rows", "input_layernorm"),
        (layer_forward, "multiply_rows_by_each", "self_attn"),
        (layer_forward, "multiply_rows", "self_attn.o_proj"),
        (gated_forward, "multiply_rows_gated", "mlp"),
    ],
)
def test_an_error_in_a_kernel_is_the_modules(
    owner: Any, kernel: str, blamed: str, layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What raises in a kernel is blamed on the module whose result it computes."""

    def fails(*_args: Any) -> Any:
        raise RuntimeError("no such instruction")

    model = compiled("qwen3")
    monkeypatch.setattr(owner, kernel, fails)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no such instruction") as caught:
        model(IDS[:, :1], use_cache=False)
    assert len(layers) == 1
    first = model.model.layers[0]
    assert module_raising(model, caught.value.__traceback__) is first.get_submodule(blamed)


def test_layers_of_other_code_are_left_alone() -> None:
    """A layer whose forward is another is not compiled, nor one whose attention or MLP is."""
    model = model_of("llama")

    class Other(type(model.model.layers[0].self_attn)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model.model.layers[0].self_attn.__class__ = Other
    assert compile_layers(model, 8) == 1
