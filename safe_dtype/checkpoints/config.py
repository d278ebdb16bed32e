"""config.json as it stands: what a checkpoint claims, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CorruptCheckpointError
from ..facts import Where
from ..store import parse_json
from .model_files import Files

# transformers' two names of a dtype, as an argument and as a field of a config; the second is from before transformers 5.
DTYPE_NAMES = ("dtype", "torch_dtype")
_TEXT_PARTS = ("text_config", "language_config", "llm_config", "decoder")


def read_config(where: Where, files: Files) -> dict[str, Any]:
    """Return config.json; empty where there is none.

    Raises:
        CorruptCheckpointError: If it is no JSON table.
    """
    if not files.has("config.json"):
        return {}
    try:
        config = parse_json(files.local("config.json").read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CorruptCheckpointError(where.name, f"config.json is no JSON ({exc})", "download it again") from exc
    if not isinstance(config, dict):
        raise CorruptCheckpointError(where.name, "config.json is no table", "download it again")
    return config


def as_dict(config: Any) -> dict[str, Any]:
    """Return a config object of transformers, or a table, as a plain table."""
    if isinstance(config, Mapping):
        return dict(config)
    table: dict[str, Any] = config.to_dict()
    # What is written is the class's; where the class stands in for another model type, the file's is its own.
    return table | ({"model_type": config.model_type} if hasattr(config, "model_type") else {})


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a composite config that describes the language model; the config itself where it has none."""
    for name in _TEXT_PARTS:
        if isinstance(config.get(name), Mapping):
            return dict(config[name])
    return config


def first(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """Return the first of the fields called `names` that is set."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def claimed_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype the config claims, by torch's name; of the text part where the whole claims none."""
    claim = first(config, *DTYPE_NAMES) or first(text_part(config), *DTYPE_NAMES)
    return str(claim).removeprefix("torch.") if claim and not isinstance(claim, Mapping) else None


def without_dtypes(config: Any) -> Any:
    """Return a table, and those in it, without what they claim of dtypes."""
    if not isinstance(config, Mapping):
        return config
    return {name: without_dtypes(part) for name, part in config.items() if name not in DTYPE_NAMES}


def packed_bits(quantization: Mapping[str, Any]) -> int | None:
    """Return how many bits a code takes by a quantization_config; None: it names none.

    Where the groups of compressed-tensors differ, the fewest: more numbers are in a word then.
    """
    for loads, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if quantization.get(loads) is True:
            return bits
    named = first(quantization, "bits", "w_bit")
    groups = quantization.get("config_groups")
    parts = groups.values() if isinstance(groups, Mapping) else ()
    schemes = [group.get("weights") for group in parts if isinstance(group, Mapping)]
    counts = [scheme.get("num_bits") for scheme in schemes if isinstance(scheme, Mapping)]
    return min((count for count in (named, *counts) if isinstance(count, int) and count > 0), default=None)


def code_format(quantization: Mapping[str, Any]) -> str | None:
    """Return how the codes of GPTQ and AWQ lie in their words, by a quantization_config; None: it names none."""
    if quantization.get("is_marlin_format") is True:
        return "marlin"
    named = first(quantization, "checkpoint_format", "version")
    return str(named).lower() if isinstance(named, str) else None


def is_to_dequantize(quantization: Mapping[str, Any]) -> bool:
    """Whether a quantization_config has transformers dequantize the weights, whatever device they go to."""
    return quantization.get("dequantize") is True or quantization.get("run_compressed") is False
