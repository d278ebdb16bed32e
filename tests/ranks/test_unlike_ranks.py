"""A fleet of unlike machines, for real: one rank calculates as an older CPU, and is known by what is measured on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import safe_dtype
from safe_dtype import BFLOAT16, SafeAutoModelForCausalLM, plan_of
from safe_dtype.facts import VerdictKind
from safe_dtype.loading import Request, plan_request
from safe_dtype.ranks.one_plan.consensus import digest

from .processes import OLDER_CPU, Launch, begin_case, run_ranks

Saved = Callable[..., Path]


@dataclass(frozen=True)
class Loaded:
    """How a model came out on one rank."""

    digest: str
    explanation: str
    dtype: torch.dtype
    own: VerdictKind  # of bfloat16, on this rank alone


def wide(folder: Path) -> Path:
    """Save a model that is wide enough for its dtype to matter."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2000, hidden_size=768, intermediate_size=2304, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=128, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def loads(source: Path, cache: Path, how: str) -> Loaded:
    """Load on this rank, and tell how it came out."""
    os.environ["SAFE_DTYPE_CACHE"] = str(cache)
    begin_case(how, 100)
    model: Any
    if how == "SafeAutoModel":
        model = SafeAutoModelForCausalLM.from_pretrained(source)
    elif how == "SafeAutoModel after init_process_group":
        safe_dtype.init_process_group()
        model = SafeAutoModelForCausalLM.from_pretrained(source)
    else:
        safe_dtype.patch()
        arguments = {"patched": {}, "device_map": {"device_map": "cpu"}, "tp_plan": {"tp_plan": "auto"}}[how]
        model = AutoModelForCausalLM.from_pretrained(source, **arguments)
        safe_dtype.unpatch()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    model.generate(torch.arange(10, 20)[None], max_new_tokens=2, do_sample=False)
    plan = plan_of(model)
    alone = plan_request(Request(source, {}), drifts="ignored")
    kind = next(one.kind for one in alone.decisions if one.candidate.storage == one.candidate.compute == BFLOAT16)
    dist.barrier()
    return Loaded(digest(plan), plan.explain(), model.dtype, kind)


@pytest.mark.slow
@pytest.mark.needs("x86")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "how", ["SafeAutoModel", "SafeAutoModel after init_process_group", "patched", "device_map", "tp_plan"]
)
def test_one_rank_is_older(how: str, tmp_path: Path) -> None:
    """Both ranks load what the older one can run well, and the plan names the rank that decides."""
    launch = Launch(seconds=150, environments={1: OLDER_CPU}, joins=False)
    newer, older = run_ranks(loads, 2, wide(tmp_path / "model"), tmp_path / "cache", how, launch=launch)
    assert newer.digest == older.digest
    assert newer.dtype == older.dtype
    assert older.own is VerdictKind.SLOW
    if newer.own is VerdictKind.NATIVE:
        assert "slow on rank 1" in newer.explanation.replace("\n", " ")
