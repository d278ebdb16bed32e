"""Which positions count: padding, labels, what each token should have foretold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import TINY
from verifying.by_the_book import Batches, check, logits_of, plain_figures, tiny
from verifying.fixed_answers import BATCH, LOGITS, saying

from safe_dtype import measure_drift
from safe_dtype.errors import NothingToCompareError


def test_no_batches() -> None:
    """Without batches there is no drift."""
    with pytest.raises(NothingToCompareError, match="no batches"):
        measure_drift(saying(LOGITS), saying(LOGITS), [])


def test_everything_hidden() -> None:
    """Nor is there where every position is hidden."""
    hidden = {**BATCH, "attention_mask": torch.zeros(1, 8, dtype=torch.long)}
    with pytest.raises(NothingToCompareError, match="attention_mask"):
        measure_drift(saying(LOGITS), saying(LOGITS), [hidden])


def test_empty_batches() -> None:
    """A batch without items adds nothing, and of such batches alone there is no drift."""
    empty = {name: value[:0] for name, value in BATCH.items()}

    def model(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": LOGITS[: len(input_ids)]}

    with pytest.raises(NothingToCompareError, match="no batch came"):
        measure_drift(model, model, [empty])
    assert measure_drift(model, model, [BATCH, empty]) == measure_drift(model, model, [BATCH])


def test_one_position_shown() -> None:
    """One position is compared; whether the reference says the same of everything, it cannot tell."""
    batch = {**BATCH, "attention_mask": torch.eye(8, dtype=torch.long)[2:3]}
    assert measure_drift(saying(LOGITS), saying(LOGITS), [batch]).positions == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    """Padded positions count for nothing: a padded batch drifts as its rows do one by one without padding."""
    rows = [torch.arange(3, 3 + length) for length in (4, 9)]
    padded, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    for row, ids in enumerate(rows):
        where = slice(0, len(ids)) if side == "right" else slice(9 - len(ids), 9)
        padded[row, where], mask[row, where] = ids, 1
    position_ids = (mask.cumsum(1) - 1).clamp_min(0)
    whole = {"input_ids": padded, "attention_mask": mask, "position_ids": position_ids, "output_hidden_states": True}
    single = [{"input_ids": ids[None], "output_hidden_states": True} for ids in rows]
    reference, candidate = tiny("qwen3"), tiny("qwen3", torch.bfloat16)
    together, apart = (measure_drift(candidate, reference, batches) for batches in ([whole], single))
    assert together.positions == apart.positions == 13
    # Attention over a padded row rounds in another order: bfloat16's own rounding apart, the two agree.
    assert together.kl_mean == pytest.approx(apart.kl_mean, rel=0.5)
    assert together.perplexity_ratio == pytest.approx(apart.perplexity_ratio, rel=1e-3)
    assert together.hidden_cosine == pytest.approx(apart.hidden_cosine, abs=1e-4)


def test_labels(qwen3: Callable[[torch.dtype], Any], text: Batches) -> None:
    """Labels say which tokens the perplexity is about; -100 is none; the other figures do not change."""
    reference, candidate = qwen3(torch.float32), qwen3(torch.bfloat16)
    labels = text[0]["input_ids"].clone()
    labels[:, :40] = -100
    drift = measure_drift(candidate, reference, [text[0] | {"labels": labels}])
    mine, theirs = (
        torch.nn.functional.cross_entropy(logits_of(one, text[:1])[0][0, :-1].double(), labels[0, 1:])
        for one in (candidate, reference)
    )
    assert drift.perplexity_ratio == pytest.approx(float((mine - theirs).exp()), rel=1e-9)
    assert drift.kl_mean == measure_drift(candidate, reference, text[:1]).kl_mean


def test_encoder_decoder() -> None:
    """Of an encoder-decoder the decoder's positions count, those with a label of -100 apart."""
    reference, candidate = tiny("t5"), tiny("t5", torch.bfloat16)
    labels = torch.tensor([[5, 6, 7, 8, -100, -100]])
    batch = {"input_ids": torch.arange(3, 12)[None], "labels": labels, "output_hidden_states": True}
    drift = measure_drift(candidate, reference, [batch])
    theirs, mine = (logits_of(one, [batch])[0][0, :4] for one in (reference, candidate))
    check(drift, plain_figures(theirs, mine))
    loss, worse = (torch.nn.functional.cross_entropy(one.double(), labels[0, :4]) for one in (theirs, mine))
    assert drift.perplexity_ratio == pytest.approx(float((worse - loss).exp()), rel=1e-9)
    assert drift.hidden_cosine == pytest.approx(1, abs=1e-3)


def test_decoder_input_ids() -> None:
    """Without labels the decoder's next input is what its logits should foretell."""
    batch = TINY["t5"].inputs()
    reference, candidate = tiny("t5"), tiny("t5", torch.bfloat16)
    drift = measure_drift(candidate, reference, [batch])
    losses = [
        torch.nn.functional.cross_entropy(one[0, :-1].double(), batch["decoder_input_ids"][0, 1:])
        for one in (logits_of(candidate, [batch])[0], logits_of(reference, [batch])[0])
    ]
    assert drift.perplexity_ratio == pytest.approx(float((losses[0] - losses[1]).exp()), rel=1e-9)


def test_masked_language_model() -> None:
    """A model that does not predict the next token has no perplexity on a text."""
    drift = measure_drift(tiny("bert", torch.bfloat16), tiny("bert"), [TINY["bert"].inputs()])
    assert (drift.kind, drift.perplexity_ratio) == ("tokens", None)
