"""A tiny model of a class, of random weights, saved in float32 and in both 16-bit dtypes."""

from __future__ import annotations

import contextlib
import copy
import itertools
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
from safe_dtype.rescaling.discovery.twin import config_for, randomize

from .families import fit
from .uniform import uniform

MOST_PARAMETERS = 20_000_000
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


def _resnet() -> dict[str, Any]:
    backbone = tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return {
        "backbone_config": backbone,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
    }


_DETR = {
    "d_model": 32, "hidden_size": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5,
}  # fmt: skip
_CODEC = {
    "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 32, "codebook_dim": 16,
}  # fmt: skip
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_SERIES = {
    "prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2], "num_time_features": 1, "d_model": 16,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip
# What else is asked of types whose default config wants a library that is not here, or says nothing of a size.
_SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    **dict.fromkeys(
        ("detr", "conditional_detr", "dab-detr", "table-transformer"),
        lambda: _DETR | _resnet() | {"backbone_config": tf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
        )},
    ),
    "deformable_detr": lambda: _DETR | _resnet() | {"num_feature_levels": 3},
    "deta": lambda: _DETR | _resnet() | {"num_feature_levels": 3},
    "rt_detr": lambda: _DETR | {
        "backbone_config": tf.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        "encoder_hidden_dim": 32, "encoder_in_channels": [8, 16, 16], "decoder_in_channels": [32, 32, 32],
        "num_denoising": 0, "anchor_image_size": None,
    },
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), lambda: dict(_SERIES)),
    "resnet": lambda: {"embedding_size": 8, **_STAGES},
    "bit": lambda: {"embedding_size": 8, "num_groups": 4, **_STAGES},
    **dict.fromkeys(("convnext", "convnextv2"), lambda: dict(_STAGES)),
    **dict.fromkeys(
        ("swin", "swinv2", "donut-swin", "maskformer-swin"),
        lambda: {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "image_size": 128},
    ),
    "mimi": lambda: _CODEC | {"vector_quantization_hidden_dimension": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                              "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32, "sliding_window": 16,
                              "num_semantic_quantizers": 1, "num_quantizers": 4, "upsample_groups": 16, "use_causal_conv": True},
    "encodec": lambda: _CODEC | {"num_lstm_layers": 1},
    "layoutlmv3": lambda: _TEXT | {"coordinate_size": 6, "shape_size": 4, "input_size": 224, "patch_size": 32,
                                   "max_2d_position_embeddings": 64, "rel_pos_bins": 8, "rel_2d_pos_bins": 8},
    "lilt": lambda: _TEXT | {"hidden_size": 48, "max_2d_position_embeddings": 64},
    **dict.fromkeys(("beit", "data2vec-vision"), lambda: _VISION | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}),
    "dpt": lambda: _VISION | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16],
                              "fusion_hidden_size": 16, "is_hybrid": False},
    "efficientnet": lambda: {"image_size": 32, "kernel_sizes": [3, 3, 5], "in_channels": [32, 16, 24], "out_channels": [16, 24, 20],
                             "strides": [1, 1, 2], "num_block_repeats": [1, 1, 2], "expand_ratios": [1, 6, 6],
                             "depthwise_padding": []},
    "mobilebert": lambda: _TEXT | {"hidden_size": 64, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "perceiver": lambda: {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 1,
                          "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "vocab_size": 96,
                          "max_position_embeddings": 64},
    "bros": lambda: _TEXT | {"hidden_size": 64},
    "lxmert": lambda: {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "l_layers": 1,
                       "x_layers": 1, "r_layers": 1, "visual_feat_dim": 16, "num_qa_labels": 8},
    "decision_transformer": lambda: {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "esm": lambda: _TEXT | {"pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "patchtst": lambda: {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4,
                         "prediction_length": 4},
    "patchtsmixer": lambda: {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4,
                             "prediction_length": 4},
}  # fmt: skip


def tiny_models(model_type: str, model_class: Any) -> Iterator[Any]:
    """Yield tiny models of `model_class` in float32, the most faithful first.

    Raises:
        Exception: What modelling code raises over its own default config, after those that can be built.
    """
    joined, settings = _JOINED.get(model_type), _SETTINGS.get(model_type, dict)
    config = joined() if joined else tf.CONFIG_MAPPING[model_type](**settings())
    first: Exception | None = None
    config = config_for(model_class, config)
    for tiny in (
        [config]
        if joined or model_type in _SETTINGS
        else itertools.chain(tiny_configs(config), [uniform(config), config])
    ):
        built = _attempt(model_type, model_class, copy.deepcopy(tiny))
        if isinstance(built, Exception):
            first = first or built
        else:
            yield built
    if first is not None:
        raise first


def _attempt(model_type: str, model_class: Any, config: Any) -> Any:
    try:
        return _built(model_type, model_class, config)
    except Exception as exc:  # noqa: BLE001  # foreign code over a config that it may not like: the next one may do
        return exc


def _built(model_type: str, model_class: Any, config: Any) -> Any:
    fit(model_type, config)
    with contextlib.suppress(Exception):  # foreign code over a config that it may not like: as it is, then
        # As it will be read from a file: what a config derives from other sizes, it derives from the tiny ones.
        config = type(config).from_dict(config.to_dict())
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
