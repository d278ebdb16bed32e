"""What llama.cpp knows of an architecture: its name there, its hyperparameters, and how its tensors lie. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safe_dtype.errors import NotExportableError

# By `model_type`, llama.cpp's name, which is gguf's MODEL_ARCH as well.
ARCHITECTURES: Mapping[str, str] = {"qwen3": "qwen3", "qwen2": "qwen2", "llama": "llama"}
_ADVICE = (
    f"`safe-dtype export gguf` writes {', '.join(ARCHITECTURES)}; llama.cpp's convert_hf_to_gguf.py writes others"
)


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model by its config, in the words of GGUF."""

    architecture: str
    context_length: int
    embedding_length: int
    block_count: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    head_length: int
    vocab_size: int
    rms_epsilon: float
    rope_base: float
    rope_factors: tuple[float, ...] = ()  # by which frequencies are divided, half a head of them; empty: by none
    tied: bool = False

    @property
    def pairs_in_rows(self) -> bool:
        """Whether rows of queries and keys are put in pairs, as llama.cpp's older rotary embedding has them."""
        return self.architecture == "llama"


def gguf_model(config: Mapping[str, Any]) -> GgufModel:
    """Return what GGUF says of the model whose config.json this is.

    Raises:
        NotExportableError: If llama.cpp would compute something else with it, or it is not known whether it would.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise NotExportableError(f"its architecture, {kind}, has no tensor names here", _ADVICE)
    if problem := _not_as_llama_cpp(config):
        raise NotExportableError(problem, _ADVICE)
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_length = int(config.get("head_dim") or width // heads)
    base, factors = _rotary(config, head_length)
    return GgufModel(
        ARCHITECTURES[kind],
        int(config["max_position_embeddings"]),
        width,
        int(config["num_hidden_layers"]),
        int(config["intermediate_size"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        head_length,
        int(config["vocab_size"]),
        float(config["rms_norm_eps"]),
        base,
        factors,
        bool(config.get("tie_word_embeddings", False)),
    )


def _not_as_llama_cpp(config: Mapping[str, Any]) -> str:
    """Return what llama.cpp would leave out of the model; empty where it computes all of it."""
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {config['hidden_act']}, and llama.cpp computes silu"
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
        return "some of its layers attend to a window, and llama.cpp would attend to all tokens"
    if config.get("quantization_config"):
        return "its weights are quantized already"
    if config["model_type"] != "qwen2" and config.get("attention_bias"):
        return "its attention has biases, for which this architecture has no names there"
    if config.get("mlp_bias"):
        return "its feed-forward layers have biases, for which this architecture has no names there"
    return ""


def _rotary(config: Mapping[str, Any], head_length: int) -> tuple[float, tuple[float, ...]]:
    """Return the base of the rotary embedding, and the factors of its frequencies."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise NotExportableError("only a part of each of its heads is rotated", _ADVICE)
    if kind == "default":
        return base, ()
    if kind == "llama3":
        return base, _llama3_factors(rope, base, head_length)
    raise NotExportableError(f"its positions are scaled by {kind}", _ADVICE)


def _llama3_factors(rope: Mapping[str, Any], base: float, head_length: int) -> tuple[float, ...]:
    """Return by what each frequency is divided in Llama 3.1 and later: long waves by `factor`, short ones by 1."""
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = float(rope["original_max_position_embeddings"])
    factors = []
    for index in range(0, head_length, 2):
        wavelength = 2 * math.pi * base ** (index / head_length)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)
