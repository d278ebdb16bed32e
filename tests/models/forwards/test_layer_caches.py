"""Steps that are computed layer by layer read and write every cache of transformers that runs on a CPU as plain ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.forwards.compiled import IDS, compile_all, counted, greedy, model_of
from transformers import DynamicCache

from safe_dtype.models.forwards import layer_forward
from safe_dtype.models.forwards.layer_forward import compile_layers

pytest.importorskip("llvmlite", reason="forwards are compiled by llvmlite, of the extra `fast`")


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that are computed in one go from now on."""
    return counted(monkeypatch, layer_forward, "_computed")


def compiled(name: str = "qwen3") -> Any:
    """Return a model that is compiled, its layers too."""
    model = model_of(name)
    compile_all(model)
    compile_layers(model, 8)
    return model


def quantized(backend: str, **options: Any) -> dict[str, Any]:
    """Return the options of a generation with a cache that is quantized."""
    return {"cache_implementation": "quantized", "cache_config": {"backend": backend, **options}}


@pytest.mark.parametrize(
    ("package", "options"),
    [
        pytest.param("torch", quantized("fp8"), id="fp8", marks=pytest.mark.needs("transformers>=5.21")),
        pytest.param("optimum.quanto", quantized("quanto", residual_length=8), id="quanto"),
        pytest.param("hqq", quantized("hqq", residual_length=8, nbits=4, axis_key=1, axis_value=1), id="hqq"),
        pytest.param("torch", {"use_cache": False}, id="none"),
    ],
)
def test_tokens_are_plains(package: str, options: dict[str, Any], layers: list[Any]) -> None:
    """Greedy tokens are those of the plain model, whatever keys and values are kept in."""
    pytest.importorskip(package, exc_type=ImportError)
    model = compiled()
    assert greedy(model, **options) == greedy(model_of("qwen3"), **options)
    assert bool(layers) == (options.get("use_cache") is not False)


def test_assisted(layers: list[Any]) -> None:
    """A model that another one drafts for, both of them compiled, goes on with the tokens of plain ones."""
    plain = greedy(model_of("qwen3"), assistant_model=model_of("qwen2"))
    drafting, model = compiled("qwen2"), compiled()
    assert greedy(model, assistant_model=drafting) == plain
    assert {layer.attention for layer in layers} == {
        type(one.model.layers[0].self_attn).forward for one in (model, drafting)
    }


def contrasted(model: Any, count: int = 3, top: int = 4) -> list[int]:
    """Return the tokens that a search by contrast chooses: candidates in one batch, the one that is least like what was."""
    chosen: list[int] = []
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        past = model.model(IDS, past_key_values=cache).last_hidden_state[0]
        for _ in range(count):
            likely = model.lm_head(past[-1]).softmax(-1).topk(top)
            cache.batch_repeat_interleave(top)
            new = model.model(likely.indices[:, None], past_key_values=cache).last_hidden_state[:, 0]
            alike = torch.cosine_similarity(new[:, None].float(), past[None].float(), dim=-1).amax(1)
            best = int((0.4 * likely.values - 0.6 * alike).argmax())
            cache.batch_select_indices(torch.tensor([best]))
            chosen.append(int(likely.indices[best]))
            past = torch.cat([past, new[best : best + 1]])
    return chosen


def test_contrastive(layers: list[Any]) -> None:
    """A search that repeats a cache for its candidates and keeps one of them chooses as on the plain model."""
    assert contrasted(compiled()) == contrasted(model_of("qwen3"))
    assert len(layers) == 3 * 2
