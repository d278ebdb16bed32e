"""A rehearsal device that is a card of a user: as the package sees it, and as it behaves."""

from __future__ import annotations

import pytest
import torch
from accelerator.rehearsal import Rehearsal
from torch_musa.cards import CARDS

from safe_dtype.devices import facts_of
from safe_dtype.facts import BFLOAT16, FLOAT16, VerdictKind


@pytest.mark.parametrize("card", CARDS)
def test_what_a_card_is(rehearsal: Rehearsal, card: str) -> None:
    """It has its vendor, its memory and its family of the prior table; float16 is native on all of them."""
    rehearsal.insert(card, device=1)
    facts = facts_of("musa:1")
    assert (facts.name, facts.memory.total_bytes) == (CARDS[card].name, CARDS[card].memory_bytes)
    assert facts.vendor == "nvidia"
    assert facts.family.startswith("nvidia")
    verdicts = {verdict.dtype: verdict for verdict in facts.verdicts if verdict.op == "matmul"}
    assert verdicts[FLOAT16].kind is VerdictKind.NATIVE
    is_native = verdicts[BFLOAT16].kind is VerdictKind.NATIVE
    with torch.musa.device(1):
        assert is_native == torch.musa.is_bf16_supported(including_emulation=False)
        assert torch.musa.is_bf16_supported()
    assert facts_of("musa:0").vendor == "rehearsal"
