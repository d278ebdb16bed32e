"""Tensor parallel generation: how a rank ends that fails where the others cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModel

from safe_dtype import BFLOAT16, guard
from safe_dtype.ranks import tensor_parallel
from safe_dtype.testing import fault

from .processes import Launch, begin_case, outcomes_of
from .test_tensor_parallel import DOWN, PROMPT, folder, generate, load

__all__ = ["folder"]  # a fixture


def alone(folder: Path) -> str:
    """Be a rank of which the last one raises in Python, between two collectives: what no mode can see."""
    tensor_parallel.SECONDS_AFTER_AN_ERROR = 2.0
    model = load(folder / "bfloat16", policy=DOWN)
    generate(model, None)
    begin_case("one rank raises")
    if dist.get_rank() == 1:
        with fault(model, "model.layers.1.mlp.act_fn", "not_implemented", dtype=BFLOAT16):
            generate(model, None)
    generate(model, None)
    return "not reached"


def unseen(folder: Path) -> str:
    """Be a rank of which the last one gets NaN from the last norm, behind the last collective of a model without a head."""
    tensor_parallel.SECONDS_FOR_NAN = 3.0
    model = guard(AutoModel.from_pretrained(folder / "bfloat16", tp_plan="auto"), policy=DOWN)
    with torch.no_grad():
        model(PROMPT)
        begin_case("NaN that one rank sees")
        if dist.get_rank() == 1:
            with fault(model, "norm", "nan", dtype=BFLOAT16):
                model(PROMPT)
        model(PROMPT)
        model(PROMPT)
    return "not reached"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "error"), [(alone, "not implemented for 'BFloat16'"), pytest.param(unseen, "PeerLostError", id="nan")]
)
def test_a_rank_that_the_others_cannot_follow_ends(rank: Callable[[Path], str], error: str, folder: Path) -> None:
    """It waits a little for them, and ends with its own error or for their absence; they lose a peer, and nobody hangs."""
    peer, ended = outcomes_of(rank, 2, folder, launch=Launch(seconds=60, patience=20))
    assert (peer.status, ended.status) == (1, 1)
    assert error in (ended.error or "")
    assert "onnection" in (peer.error or "")
