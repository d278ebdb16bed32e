"""Loading with a plan: transformers' own model, in the planned dtype, bit for bit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import recorded_cpu
import torch
import transformers
from numerics.laid_out import IDS, load, save
from tiny_models import TINY, tiny_gguf

import safe_dtype
from safe_dtype import BFLOAT16, SafeAutoModel, SafeAutoModelForCausalLM, SafeDtypeWarning, plan_of
from safe_dtype.models.forwards.compiled_products import products_of
from safe_dtype.rescaling.discovery.tiny_config import tiny_configs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def output_of(model: Any, name: str) -> torch.Tensor:
    """Run one forward pass on the architecture's own inputs."""
    inputs = TINY[name].inputs()
    for key, value in inputs.items():
        inputs[key] = value.to(model.dtype) if value.is_floating_point() else value
    with torch.inference_mode():
        found: torch.Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TINY)
def test_bit_for_bit(name: str, dtype: str, saved: Callable[..., Path]) -> None:
    """Weights, buffers and logits equal those of plain transformers in the plan's dtype."""
    folder, auto_name = saved(name), TINY[name].auto_name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)  # an ordered dtype may be slow on this machine
        ours = getattr(safe_dtype, f"Safe{auto_name}").from_pretrained(folder, dtype=dtype)
    storage = plan_of(ours).storage
    plain = getattr(transformers, auto_name).from_pretrained(folder, dtype=DTYPES[storage.name])
    assert dtype in ("auto", storage.name)
    assert type(ours) is type(plain)
    theirs = dict(plain.named_parameters()) | dict(plain.named_buffers())
    mine = dict(ours.named_parameters()) | dict(ours.named_buffers())
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert tensor.dtype == theirs[key].dtype, key
        assert torch.equal(tensor, theirs[key]), key
    # Numbers that are no numbers compare equal here as well: T5 and others leave float16's range.
    assert torch.equal(output_of(ours, name).nan_to_num(), output_of(plain, name).nan_to_num())


def test_compiled_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where compiled products were measured to be the fastest, the plan says so, and a loaded model multiplies by them."""
    pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(import_module("safe_dtype.loading.plan_request"), "_ROUTED_FROM", 0)  # parameters
    monkeypatch.setitem(recorded_cpu.ROUTE_RATES, (BFLOAT16, "matmul_rows"), (60e9, 1500e9))
    model = SafeAutoModelForCausalLM.from_pretrained(save("qwen3-tied", tmp_path / "model"))
    plan = plan_of(model)
    assert plan.routes is not None
    assert (plan.routes.layout, plan.routes.compiled_rows) == ("plain", 8)
    assert "products=compiled for 8 rows" in plan.explain(width=200)
    assert "products of up to 8 rows compiled for this CPU" in plan.chosen.reason
    assert sum(products_of(module) is not None for module in model.modules()) == 15
    plain = load(tmp_path / "model")
    prompt = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**prompt), plain.generate(**prompt))


def test_threads(tiny_qwen3: Path) -> None:
    """Threads that load at the same time leave transformers whole: models that are made later are tied."""
    tie_weights, dtype = transformers.PreTrainedModel.tie_weights, torch.get_default_dtype()
    try:
        with ThreadPoolExecutor(4) as pool:
            models = list(pool.map(lambda _: SafeAutoModel.from_pretrained(tiny_qwen3), range(16)))
        assert transformers.PreTrainedModel.tie_weights is tie_weights
        assert torch.get_default_dtype() is dtype
    finally:
        transformers.PreTrainedModel.tie_weights = tie_weights
        torch.set_default_dtype(dtype)
    state = models[0].state_dict()
    assert all(torch.equal(value, state[name]) for model in models for name, value in model.state_dict().items())


def test_output_loading_info(saved: Callable[..., Path]) -> None:
    """`output_loading_info=True` gives the pair that transformers gives."""
    model, info = SafeAutoModel.from_pretrained(saved("qwen3"), output_loading_info=True)
    assert plan_of(model).source == str(saved("qwen3"))
    assert "missing_keys" in info


def test_arguments_pass_through(saved: Callable[..., Path]) -> None:
    """`attn_implementation`, config fields and `device_map` reach transformers."""
    model = SafeAutoModel.from_pretrained(
        saved("qwen3"), attn_implementation="eager", device_map="cpu", num_hidden_layers=1, use_cache=False
    )
    assert model.config._attn_implementation == "eager"
    assert (model.config.use_cache, len(model.model.layers)) == (False, 1)
    assert str(model.device) == "cpu"


def test_state_dict(saved: Callable[..., Path]) -> None:
    """Weights that come as a state dict are planned for by their own dtype."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(saved("qwen3"), dtype=torch.bfloat16)
    model = SafeAutoModel.from_pretrained(
        None, config=plain.config, state_dict=plain.state_dict(), policy="prefer=memory"
    )
    assert plan_of(model).saved == BFLOAT16
    assert torch.equal(model.model.embed_tokens.weight, plain.model.embed_tokens.weight)


def test_subfolder_and_variant(tmp_path: Path) -> None:
    """`subfolder` and `variant` find the files that transformers finds."""
    TINY["qwen3"].save(tmp_path / "inner", torch.float16, variant="fp16")
    model = SafeAutoModel.from_pretrained(tmp_path, subfolder="inner", variant="fp16")
    assert plan_of(model).saved.name == "float16"


def test_shards_and_lying_config(tmp_path: Path) -> None:
    """The headers decide, not the config: a lie is warned about and does no harm."""
    import json

    folder = TINY["qwen3"].save(tmp_path / "model", torch.bfloat16, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    with pytest.warns(SafeDtypeWarning, match="float16"):
        model = SafeAutoModel.from_pretrained(folder)
    assert plan_of(model).saved == BFLOAT16
    assert model.dtype != torch.float16


@pytest.mark.needs("adapter_loader")
def test_adapter(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """An adapter's folder loads its base, planned by the base's weights, with the adapter on it."""
    import peft

    base = transformers.AutoModelForCausalLM.from_pretrained(saved("qwen3"), dtype=torch.bfloat16)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    model = SafeAutoModel.from_pretrained(tmp_path)
    assert plan_of(model).saved == BFLOAT16
    assert any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.needs("gguf_loader")
def test_gguf(tmp_path: Path) -> None:
    """A GGUF file loads as transformers loads it, head and all: its quantizer's rule holds."""
    tiny_gguf(tmp_path / "model.gguf")
    model = SafeAutoModel.from_pretrained(tmp_path, gguf_file="model.gguf")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert (type(model), model.dtype) == (type(plain), plain.dtype)
    assert plan_of(model).quantization == "gguf:Q8_0"
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)


@pytest.mark.needs("gguf_loader")
@pytest.mark.parametrize("name", ["SafeAutoModel", "SafeAutoModelForCausalLM"])
def test_gguf_by_its_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GGUF file loads that file, absolute or relative, also with the plan that was made for that path."""
    path = tiny_gguf(tmp_path / "model.gguf")
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    monkeypatch.chdir(tmp_path)
    auto = getattr(safe_dtype, name)
    for arguments in ({}, {"plan": plan_of(auto.from_pretrained(path))}, {"dtype": "float16"}):
        for source in (path, str(path), "model.gguf"):
            model = auto.from_pretrained(source, **arguments)
            assert type(model) is type(expected)
            assert torch.equal(model.lm_head.weight, expected.lm_head.weight.to(model.dtype))


@pytest.mark.needs("gguf_loader")
@pytest.mark.parametrize("arguments", [{}, {"gguf_file": "model.gguf"}])
def test_patch_takes_no_path_of_gguf(arguments: dict[str, str], tmp_path: Path) -> None:
    """Plain transformers refuses the path of a GGUF file: so does the patch, in the same words."""
    path = tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises((OSError, ValueError)) as plain:
        transformers.AutoModelForCausalLM.from_pretrained(path, **arguments)
    with safe_dtype.patched(), pytest.raises(type(plain.value)) as patched:
        transformers.AutoModelForCausalLM.from_pretrained(path, **arguments)
    assert str(patched.value) == str(plain.value)


@pytest.mark.needs("gguf_loader")
@pytest.mark.parametrize("ordered", [None, "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_gguf_as_it_comes_out(kind: str, ordered: str | None, tmp_path: Path) -> None:
    """The plan names the dtype and the bytes that come out of transformers, whatever the file holds."""
    tiny_gguf(tmp_path / "model.gguf", kind)
    model = SafeAutoModel.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=ordered)
    plan = plan_of(model)
    assert (
        {str(one.dtype) for one in model.parameters()}
        == {f"torch.{plan.storage}"}
        == {f"torch.{ordered or 'float32'}"}
    )
    assert plan.cost is not None
    assert plan.cost.weight_bytes == sum(one.numel() * one.element_size() for one in model.parameters())


def saved_with_parts(folder: Path, dtype: str) -> Path:
    """Save a model whose parts have parts, in `dtype`, as its config and those within it say."""
    torch.manual_seed(0)
    config = next(tiny_configs(transformers.T5Gemma2Config()))
    model = transformers.T5Gemma2ForConditionalGeneration._from_config(config, dtype=torch.float32)
    model.half().to(DTYPES[dtype]).save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(
        re.sub(r'"dtype": (null|"\w+")', f'"dtype": "{dtype}"', file.read_text(encoding="utf-8")), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize(
    ("files", "dtype"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float16", "bfloat16"), ("float32", "float32")],
)
def test_parts_of_parts(files: str, dtype: str, tmp_path: Path) -> None:
    """What transformers makes in the dtype that the config of a part of a part names comes out in that of the rest."""
    ids = torch.arange(8, 14)[None]
    folder = saved_with_parts(tmp_path / "files", files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)  # an ordered dtype may be slow on this machine
        model = SafeAutoModel.from_pretrained(folder, dtype=dtype)
    assert {weight.dtype for weight in model.parameters()} == {DTYPES[dtype]}
    values = dict(model.named_parameters())
    plain = type(model).from_pretrained(saved_with_parts(tmp_path / "plain", files), dtype=DTYPES[files])
    for name, weight in plain.named_parameters():
        assert torch.equal(values[name], weight.to(DTYPES[dtype])), name
    with torch.no_grad():
        assert model(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()
    assert safe_dtype.report(model).events == ()
