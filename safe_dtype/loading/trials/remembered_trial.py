"""What a trial of a checkpoint found, remembered for this very model: its weights, and its config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...checkpoints.config import without_dtypes
from ...devices.learned import checkpoint_key
from ...facts import Where
from ...store import recall, remember

T = TypeVar("T")

_NOTES = ("transformers_version", "_name_or_path", "safe_dtype")  # change nothing of what is computed


def recall_trial(key: Mapping[str, Any], where: Where, read: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Return what is remembered under `key`, unless that was measured when the config of `where` was another one.

    The key is of the weights: the same weights compute something else with another activation or other rotations.
    """
    config = _digest_of_config(where)

    def read_its_own(entry: Mapping[str, Any]) -> T | None:
        return read(entry) if entry.get("config") in (None, config) else None

    return recall(key, read_its_own)


def remember_trial(key: Mapping[str, Any], where: Where, source: str, values: Mapping[str, Any]) -> None:
    """Remember `values` under `key`, with what they belong to: the checkpoint `source`, and the config of `where`."""
    remember(key, {**values, "checkpoint": checkpoint_key(source), "config": _digest_of_config(where)})


def _digest_of_config(where: Where) -> str | None:
    """Return the digest of a local config, without its dtypes and notes; None on the Hub, whose commit is in the key."""
    source = Path(where.source)
    try:
        config = json.loads((source / where.subfolder / "config.json").read_text(encoding="utf-8"))
        config = {name: value for name, value in without_dtypes(config).items() if name not in _NOTES}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError, AttributeError):
        return None
