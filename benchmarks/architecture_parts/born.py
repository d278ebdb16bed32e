"""A tiny model of a class, of random weights, saved in float32 and in both 16-bit dtypes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from safe_dtype.rescaling.discovery.isolated_build import at_most, unnoticed
from safe_dtype.rescaling.discovery.tiny_config import tiny_configs
from safe_dtype.rescaling.discovery.twin import config_for, configs_in, randomize

MOST_PARAMETERS = 40_000_000
SEED = 0

_TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_SPEECH = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_kernel": (8, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
}  # fmt: skip


def _pair(encoder: Any, decoder: Any, joined: Any) -> Any:
    config = joined.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return config


# Types whose default config names no parts: these have to be told which.
_JOINED: dict[str, Callable[[], Any]] = {
    "encoder-decoder": lambda: _pair(tf.BertConfig(**_TEXT), tf.BertConfig(**_TEXT), tf.EncoderDecoderConfig),
    "vision-encoder-decoder": lambda: _pair(
        tf.ViTConfig(**_VISION), tf.BertConfig(**_TEXT), tf.VisionEncoderDecoderConfig
    ),
    "speech-encoder-decoder": lambda: _pair(
        tf.Wav2Vec2Config(**_SPEECH), tf.BertConfig(**_TEXT), tf.SpeechEncoderDecoderConfig
    ),
    "vision-text-dual-encoder": lambda: tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**_VISION), tf.BertConfig(**_TEXT), projection_dim=16
    ),
}


def tiny_models(model_type: str, model_class: Any) -> Iterator[Any]:
    """Yield tiny models of `model_class` in float32, the most faithful first.

    Raises:
        Exception: What modelling code raises over its own default config, after those that can be built.
    """
    joined = _JOINED.get(model_type)
    config = joined() if joined else tf.CONFIG_MAPPING[model_type]()
    first: Exception | None = None
    for tiny in [config] if joined else tiny_configs(config_for(model_class, config)):
        built = _attempt(model_class, copy.deepcopy(tiny))
        if isinstance(built, Exception):
            first = first or built
        else:
            yield built
    if first is not None:
        raise first


def _attempt(model_class: Any, config: Any) -> Any:
    try:
        return _built(model_class, config)
    except Exception as exc:  # noqa: BLE001  # foreign code over a config that it may not like: the next one may do
        return exc


def _built(model_class: Any, config: Any) -> Any:
    for part in configs_in(config):
        part.__dict__.pop("quantization_config", None)
    config.architectures = [model_class.__name__]
    with unnoticed(SEED), at_most(MOST_PARAMETERS):
        model = model_class._from_config(config, dtype=torch.float32).float().eval()
        randomize(model, 1.0, torch.Generator().manual_seed(SEED))
    return model


def saved(model: Any, folder: Path) -> dict[str, Path]:
    """Save it; return the folder of each dtype, by its name."""
    folders = {name: folder / name for name in ("float32", "bfloat16", "float16")}
    model.save_pretrained(folders["float32"])
    for name in ("bfloat16", "float16"):
        shutil.copytree(folders["float32"], folders[name])
        for file in folders[name].glob("*.safetensors"):
            weights = {
                key: tensor.to(getattr(torch, name)) if tensor.is_floating_point() else tensor
                for key, tensor in load_file(file).items()
            }
            save_file(weights, file, metadata={"format": "pt"})
        config = folders[name] / "config.json"
        config.write_text(json.dumps(_named(json.loads(config.read_text(encoding="utf-8")), name)), encoding="utf-8")
    return folders


def _named(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config whose dtypes are another, those of its parts too."""
    return {
        key: dtype if key == "dtype" else _named(value, dtype) if isinstance(value, dict) else value
        for key, value in config.items()
    }
