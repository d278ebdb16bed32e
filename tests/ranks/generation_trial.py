"""Copies of one model that generate in lockstep with injected faults, against a plain generation in the dtype due."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from safe_dtype.errors import RemoteFailure
from safe_dtype.facts import dtype_named
from safe_dtype.testing import fault

from .faults import LADDER
from .processes import begin_case

NEW_TOKENS = 5
CURABLE = ("cublas", "not_implemented", "mismatch", "kernel_arch", "nan", "inf")
FOREIGN = ("shape", "out_of_memory")
MODULES = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj", "lm_head")


@dataclass(frozen=True, slots=True)
class FailingCopy:
    """What fails in the copy of one rank: a module, from one step on, in some dtypes."""

    rank: int
    kind: str
    module: str
    step: int
    dtypes: tuple[str, ...]


def save_checkpoint(folder: str, dtype: torch.dtype = torch.float32) -> None:
    """Save a tiny model, for up to four ranks: in float32, so that every copy in 16 bit is rounded from it."""
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    tf.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)


def expected_dtype(failing: Sequence[FailingCopy]) -> str | tuple[int, ...]:
    """Return the dtype in which all answers are made in the end, or the ranks whose error ends it."""
    rung = 0
    while True:
        reached, ending = {rung}, []
        for copy in failing:  # each goes down by itself, until it is through
            own = rung
            while own < len(LADDER) and LADDER[own] in copy.dtypes and copy.kind in CURABLE:
                # What overflows bfloat16 does so in float16.
                own += 2 if copy.kind in ("nan", "inf") and own == 0 else 1
            if own == len(LADDER) or (LADDER[own] in copy.dtypes and copy.kind in FOREIGN):
                ending.append(copy.rank)
            reached.add(own)
        if ending:
            return tuple(sorted(ending))
        if max(reached) == rung:
            return LADDER[rung]
        rung = max(reached)


def _tokens(model: Any) -> torch.Tensor:
    rank = dist.get_rank()
    torch.manual_seed(5 + rank)
    prompt = torch.arange(1 + 3 * rank, 7 + 4 * rank)[None]
    tokens: torch.Tensor = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=True)
    return tokens


def _trial(checkpoint: str, failing: Sequence[FailingCopy]) -> tuple[str, list[str], int]:
    """Return a digest of dtype and weights, what was not as due, and how often a fault has shown."""
    import transformers as tf

    from safe_dtype import SafeAutoModel
    from safe_dtype.ranks import agreeing

    model = agreeing(SafeAutoModel.from_pretrained(checkpoint, dtype="bfloat16", policy="ladder=bf16>fp16>fp32"))
    rank, wanted, error, tokens = dist.get_rank(), expected_dtype(failing), None, None
    with ExitStack() as stack:
        put = [
            stack.enter_context(fault(model, copy.module, copy.kind, dtype=dtype_named(dtype), call=copy.step))
            for copy in failing
            for dtype in copy.dtypes
            if copy.rank == rank
        ]
        try:
            tokens = _tokens(model)
        except Exception as exc:  # noqa: BLE001  (which one it is, is compared)
            error = exc
    fired, dtype = sum(one.fired for one in put), str(model.dtype).removeprefix("torch.")
    if isinstance(wanted, tuple):
        is_right = isinstance(error, RemoteFailure) == (rank not in wanted) and error is not None
        return "", [] if is_right else [f"ended with {error!r}"], fired
    plain = tf.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, wanted)).eval()
    digest = hashlib.sha256(b"".join(one.detach().view(torch.uint8).numpy().tobytes() for one in model.parameters()))
    checks = {
        f"ended with {error!r}": error is None,
        f"in {dtype}, not {wanted}": dtype == wanted,
        "tokens": tokens is not None and torch.equal(tokens, _tokens(plain)),
        "weights": all(map(torch.equal, model.parameters(), plain.parameters())),
    }
    return digest.hexdigest()[:16], [what for what, is_as_due in checks.items() if not is_as_due], fired


def random_trials(checkpoint: str, seed: int, count: int) -> list[tuple[str, str, list[str], int]]:
    """Run cases that are drawn at random, the same on every rank: one or two copies fail."""
    chance, results = random.Random(seed), []
    for number in range(count):
        failing = [
            FailingCopy(
                rank,
                chance.choice(CURABLE if chance.random() < 0.85 else FOREIGN),
                chance.choice(MODULES),
                chance.randrange(NEW_TOKENS),
                chance.choice(
                    (LADDER[:1], LADDER[:1], LADDER[:2], LADDER)
                    if not place
                    else (LADDER[:1], LADDER[1:2], LADDER[:2])
                ),
            )
            for place, rank in enumerate(chance.sample(range(dist.get_world_size()), chance.choice((1, 1, 2))))
        ]
        name = f"generation {seed}/{number}: {'; '.join(map(str, failing))}"
        begin_case(name)
        results.append((name, *_trial(checkpoint, failing)))
    return results
