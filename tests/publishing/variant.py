"""A whole staged folder with figures made up, for what reads one: nothing in it was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import TINY

from safe_dtype.facts import Drift
from safe_dtype.publishing.staging.card import write_card
from safe_dtype.publishing.staging.evidence import (
    Base,
    Evidence,
    Fidelity,
    LayerRange,
    MeasuredOn,
    read_evidence,
    write_evidence,
)
from safe_dtype.publishing.staging.plots import write_plots
from safe_dtype.publishing.staging.staged_files import counts_of, digests_of

BASE = Base("org/model", "0123456789abcdef0123456789abcdef01234567", "mit", saved="bfloat16", bytes=82_000)


def fidelity(loader: str, **changes: Any) -> Fidelity:
    """Return made-up figures."""
    drift = Drift("tokens", 4, 1e-6, 2e-6, 1.0, 0.01, 1e-3, perplexity_ratio=1.0001)
    made = Fidelity(loader, "float16", "float16", drift, 0, None, (1e-6, 2e-6, 5e-7, 5e-7))
    return replace(made, **changes)


def evidence(**changes: Any) -> Evidence:
    """Return made-up evidence, without files."""
    made = Evidence(
        base=BASE,
        dtype="float16",
        architecture="Qwen3ForCausalLM",
        tensors={},
        safe_dtype=fidelity("safe_dtype"),
        plain=fidelity("transformers"),
        max_drift=0.02,
        measured_on=MeasuredOn("built-in text", "ab" * 32, 4),
        ranges=(LayerRange("model.layers.0", 12.0, 12.5), LayerRange("model.layers.1", 90_000.0, 700.0)),
        device={"name": "A processor", "verdicts": []},
        versions={"safe_dtype": "0", "torch": "2"},
        command="safe-dtype publish stage org/model --out FOLDER",
    )
    return replace(made, **changes)


def staged(folder: Path, *, shard: str = "5GB", **changes: Any) -> Path:
    """Write a tiny random model in float16 into `folder`, with evidence and a card that go with its files."""
    TINY["qwen3"].save(folder, torch.float16, max_shard_size=shard)
    made = evidence(**changes)
    config = json.loads((folder / "config.json").read_text())
    config["safe_dtype"] = {"version": "0", "needs": made.needs}
    (folder / "config.json").write_text(json.dumps(config))
    write_plots(made, folder)
    return settled(folder, made)


def settled(folder: Path, made: Evidence | None = None) -> Path:
    """Bring evidence and card in line with the files that are in `folder` now."""
    made = made or read_evidence(folder)
    write_evidence(replace(made, tensors=counts_of(folder), files=digests_of(folder)), folder)
    write_card(folder)
    return folder
