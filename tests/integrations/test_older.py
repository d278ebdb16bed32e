"""A model folder of transformers 5 as version 4.57 reads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safe_dtype.integrations.optimum import as_before_5, copied_for_4
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    Qwen3Config,
)


def folder_with(config: object, folder: Path) -> Path:
    """Return a folder that holds only this config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_default_positions() -> None:
    """The base of the positions is where version 4 looks for it: there its default would be another."""
    config = Qwen3Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}).to_dict()
    older = as_before_5(config)
    assert (older["rope_theta"], older["rope_scaling"]) == (1e6, None)
    assert "rope_parameters" not in older
    assert "rope_parameters" in config, "the caller's config is as it was"


def test_scaled_positions() -> None:
    """What scales the positions stays together, without the base."""
    rope = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 4096}
    older = as_before_5(LlamaConfig(rope_parameters=rope).to_dict())
    assert older["rope_theta"] == 5e5
    assert older["rope_scaling"]["factor"] == 4.0
    assert older["rope_scaling"]["rope_type"] == "yarn"
    assert "rope_theta" not in older["rope_scaling"]


def test_positions_by_kind_of_layer() -> None:
    """Two bases, for layers that see all and for layers that see a window, get the names of Gemma 3 and ModernBERT."""
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    older = as_before_5({"model_type": "gemma3_text", "rope_parameters": rope})
    assert (older["rope_theta"], older["rope_local_base_freq"]) == (1e6, 1e4)
    assert (older["global_rope_theta"], older["local_rope_theta"]) == (1e6, 1e4)
    assert older["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_config_inside_of_a_config() -> None:
    """The text part of a larger model is put into older words, too; other dicts are left alone."""
    text = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    older = as_before_5({"model_type": "llava", "text_config": text, "id2label": {"0": "rope_parameters"}})
    assert older["text_config"]["rope_theta"] == 7.0
    assert older["id2label"] == {"0": "rope_parameters"}


def test_copy(tmp_path: Path) -> None:
    """The copy shares its weights with the original, has another config, and leaves the original as it was."""
    original = folder_with({"rope_parameters": {"rope_theta": 3.0, "rope_type": "default"}}, tmp_path / "original")
    save_file({"w": torch.ones(3)}, original / "model.safetensors")
    (original / "tokenizer.json").write_text("{}")
    before = (original / "config.json").read_bytes()
    copied = copied_for_4(original, tmp_path / "copied")
    assert (copied / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    assert json.loads((copied / "config.json").read_text())["rope_theta"] == 3.0
    assert (original / "config.json").read_bytes() == before
    assert sorted(one.name for one in copied.iterdir()) == ["config.json", "model.safetensors"]
