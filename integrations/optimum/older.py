"""A model folder of transformers 5 as transformers 4.57 reads it. Imports no torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tasks import config_of

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


def copied_for_4(model: Path, out: Path) -> Path:
    """Make the new folder `out` with a model's weights, linked where the disk can, and its config for version 4.

    Tokenizers and image processors stay behind: an export needs none, and an older transformers may not read them.
    """
    out.mkdir(parents=True)
    for pattern in _WEIGHTS:
        for file in model.glob(pattern):
            _link(file.resolve(), out / file.name)  # what a cache links to, not the link
    config = as_before_5(config_of(model))
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return out


def as_before_5(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, and the configs in it, with the keys of transformers 4.57.

    Version 5 keeps in `rope_parameters` what version 4 keeps in `rope_theta`, `rope_scaling` and
    `partial_rotary_factor`. Version 4 ignores it, and would rotate every position by its default base.
    """
    older = {
        name: as_before_5(value) if isinstance(value, dict) and "model_type" in value else value
        for name, value in config.items()
    }
    rope = older.pop("rope_parameters", None)
    return older | (_in_older_words(rope) if isinstance(rope, dict) else {})


def _in_older_words(rope: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(rope.get("full_attention"), dict):
        return _of_one(rope)
    older = _of_one(rope["full_attention"])
    older["global_rope_theta"] = older.get("rope_theta")  # ModernBERT's key
    if isinstance(local := rope.get("sliding_attention"), dict) and "rope_theta" in local:
        older["rope_local_base_freq"] = older["local_rope_theta"] = local[
            "rope_theta"
        ]  # the key of Gemma 3, and of ModernBERT
    return older


def _of_one(rope: Mapping[str, Any]) -> dict[str, Any]:
    beside = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in beside}
    return beside | {"rope_scaling": None if scaling in ({}, {"rope_type": "default"}) else scaling}


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another disk, or one without links
        shutil.copy2(file, to)
