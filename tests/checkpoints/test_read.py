"""Checkpoints in local folders and files, made by the libraries that make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import TINY, tiny_gguf

from safe_dtype.checkpoints import read_checkpoint, read_state_dict
from safe_dtype.errors import CheckpointNotFoundError
from safe_dtype.facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, Where


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint of one safetensors file."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_one_file(tmp_path: Path) -> None:
    """A single file is read with the config beside it."""
    TINY["qwen3"].save(tmp_path, torch.float16)
    assert read_checkpoint(tmp_path / "model.safetensors").model_type == "qwen3"


def test_subfolder(tmp_path: Path) -> None:
    """A subfolder is looked into, and a missing one is named."""
    TINY["qwen3"].save(tmp_path / "inner", torch.float16)
    assert read_checkpoint(Where(tmp_path, subfolder="inner")).saved == FLOAT16
    with pytest.raises(CheckpointNotFoundError, match="'outer'"):
        read_checkpoint(Where(tmp_path, subfolder="outer"))


@pytest.mark.parametrize(
    ("tensors", "saved"),
    [
        pytest.param({"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(4)}, BFLOAT16, id="most-bytes"),
        pytest.param({"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(6)}, FLOAT32, id="most-bytes-fp32"),
        pytest.param({"a": torch.zeros(9, dtype=torch.float64)}, FLOAT32, id="float64-loads-as-float32"),
        pytest.param({"a": torch.zeros(9).to(torch.float8_e4m3fn)}, FLOAT8_E4M3, id="float8"),
        pytest.param(
            {"a": torch.zeros(99, dtype=torch.uint8), "b": torch.zeros(4).half()}, FLOAT16, id="codes-and-scales"
        ),
    ],
)
def test_saved(tensors: dict[str, torch.Tensor], saved: Any, tmp_path: Path) -> None:
    """The saved dtype is the floating format that holds most bytes."""
    assert read_checkpoint(save(tmp_path, tensors, {})).saved == saved


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_lying_config(field: str, tmp_path: Path) -> None:
    """A config that claims another dtype than the files hold is warned about, with what it would do."""
    save(tmp_path, {"a": torch.zeros(9, dtype=torch.bfloat16)}, {field: "float16"})
    (warning,) = read_checkpoint(tmp_path).warnings
    assert "claims float16" in warning
    assert "hold bfloat16" in warning
    assert "infinite" in warning


def test_honest_config(tmp_path: Path) -> None:
    """A config that tells the truth is not warned about."""
    assert not read_checkpoint(save(tmp_path, {"a": torch.zeros(9)}, {"dtype": "float32"})).warnings


def test_quantization(tmp_path: Path) -> None:
    """The quantizer's name is read from the config."""
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}, "dtype": "float16"}
    tensors = {"a": torch.zeros(9, dtype=torch.int32), "s": torch.zeros(3).half()}
    assert read_checkpoint(save(tmp_path, tensors, config)).quantization == "gptq"


def test_given_config(tmp_path: Path) -> None:
    """A config that the caller passes is used instead of the file."""
    TINY["qwen3"].save(tmp_path, torch.float16)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_hidden_layers=1)
    assert read_checkpoint(tmp_path, config=config).cache.layers == 1


def test_state_dict() -> None:
    """Weights in memory are described like files."""
    model = TINY["qwen3"].make().half()
    facts = read_state_dict(model.state_dict(), model.config)
    assert (facts.saved, facts.file_format) == (FLOAT16, "state_dict")
    assert facts.cache.layers == 2


def test_gguf(tmp_path: Path) -> None:
    """A GGUF file is described by its own fields; quantized blocks name their format."""
    path = tiny_gguf(tmp_path / "model.gguf")
    for where in (Where(path), Where(tmp_path, gguf_file="model.gguf")):
        facts = read_checkpoint(where)
        assert (facts.file_format, facts.saved, facts.quantization) == ("gguf", FLOAT32, "gguf:Q8_0")
        assert (facts.model_type, facts.parameters) == ("llama", 15_456)


def test_adapter(tmp_path: Path) -> None:
    """An adapter's folder leads to its base, and says so."""
    import peft

    base = TINY["qwen3"].save(tmp_path / "base", torch.float16)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    facts = read_checkpoint(tmp_path / "adapter")
    assert facts.adapter == facts.source == str(tmp_path / "adapter")
    assert facts.parameters == TINY["qwen3"].make().num_parameters()


def test_adapter_without_base(tmp_path: Path) -> None:
    """An adapter whose base is gone names both."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./gone"}))
    with pytest.raises(CheckpointNotFoundError, match=r"adapter of \./gone"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        pytest.param(Where("./nowhere"), "no such file or folder", id="relative"),
        pytest.param(Where("/nowhere/at/all"), "no such file or folder", id="absolute"),
        pytest.param(Where(""), "no such file or folder", id="empty"),
    ],
)
def test_no_such_path(where: Where, words: str) -> None:
    """What reads like a path and is not there is never asked of the Hub."""
    with pytest.raises(CheckpointNotFoundError, match=words):
        read_checkpoint(where)


def test_token_is_never_shown() -> None:
    """A token is no part of what is printed."""
    assert "hf_secret" not in repr(Where("org/name", token="hf_secret"))
