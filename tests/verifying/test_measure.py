"""The figures of a drift against the same figures computed plainly, in float64, with everything in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_models import TINY

from safe_dtype import Drift, measure_drift
from safe_dtype.verifying import random_batches, text_batches

Batches = list[dict[str, Any]]


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a tiny random model; the same weights every time, up to the dtype."""
    torch.manual_seed(0)
    return TINY[name].make().eval().to(dtype)


def plain_figures(reference: torch.Tensor, candidate: torch.Tensor) -> dict[str, float]:
    """Compare logits of shape (rows, classes) as a textbook would."""
    a, b = reference.double().numpy(), candidate.double().numpy()
    p, q = (np.exp(one - one.max(1, keepdims=True)) for one in (a, b))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kl = (p * np.log(p / q)).sum(1)
    return {
        "positions": len(a),
        "kl_mean": kl.mean(),
        "kl_p99": np.quantile(kl, 0.99, method="inverted_cdf"),
        "top1_agreement": (a.argmax(1) == b.argmax(1)).mean(),
        "max_abs": np.abs(a - b).max(),
        "rel_rms": math.sqrt(((a - b) ** 2).mean() / (a**2).mean()),
    }


def check(drift: Drift, expected: dict[str, float], *, but: tuple[str, ...] = ()) -> None:
    """Hold a drift to the plain figures."""
    for name, value in expected.items():
        if name not in but:
            assert getattr(drift, name) == pytest.approx(value, rel=1e-7, abs=1e-14), name


def logits_of(model: Any, batches: Batches) -> list[torch.Tensor]:
    """Run all batches and keep everything."""
    with torch.inference_mode():
        return [model(**one).logits.float() for one in batches]


@pytest.fixture(scope="module")
def qwen3(tiny_qwen3: Path) -> Callable[[torch.dtype], Any]:
    """Return a function that loads the bundled model."""
    return lambda dtype: tf.AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=dtype)


@pytest.fixture(scope="module")
def text(tiny_qwen3: Path) -> Batches:
    """The built-in text in two batches."""
    return text_batches(tf.AutoTokenizer.from_pretrained(tiny_qwen3), tokens_per_batch=64, batches=2)


def test_language_model(qwen3: Callable[[torch.dtype], Any], text: Batches) -> None:
    """The drift of the bundled model in bfloat16 is what a plain computation over all of its logits gives."""
    reference, candidate = qwen3(torch.float32), qwen3(torch.bfloat16)
    drift = measure_drift(candidate, reference, text)
    theirs, mine = logits_of(reference, text), logits_of(candidate, text)
    check(drift, plain_figures(torch.cat(theirs).flatten(0, 1), torch.cat(mine).flatten(0, 1)))
    losses = [
        torch.cat([one[0, :-1] for one in logits]).double().log_softmax(1).gather(
            1, torch.cat([one["input_ids"][0, 1:] for one in text])[:, None]
        ).mean()
        for logits in (theirs, mine)
    ]  # fmt: skip
    assert drift.kind == "tokens"
    assert drift.perplexity_ratio == pytest.approx(math.exp(losses[0] - losses[1]), rel=1e-9)
    assert 0 < drift.kl_mean < 1e-3


def test_identical(qwen3: Callable[[torch.dtype], Any], text: Batches) -> None:
    """Equal models have no drift at all, to the last bit."""
    drift = measure_drift(
        qwen3(torch.bfloat16), qwen3(torch.bfloat16), [one | {"output_hidden_states": True} for one in text]
    )
    assert drift == Drift("tokens", 128, 0.0, 0.0, 1.0, 0.0, 0.0, perplexity_ratio=1.0, hidden_cosine=1.0)


def test_repeats(qwen3: Callable[[torch.dtype], Any], text: Batches) -> None:
    """The same inputs give the same figures, bit for bit, from a list and from a generator."""
    reference, candidate = qwen3(torch.float32), qwen3(torch.float16)
    assert measure_drift(candidate, reference, text) == measure_drift(candidate, reference, (one for one in text))


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


def test_classes() -> None:
    """A sequence classifier is compared item by item."""
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}

    def make(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        return tf.BertForSequenceClassification(tf.BertConfig(vocab_size=96, num_labels=5, **config)).to(dtype).eval()

    reference, candidate = make(torch.float32), make(torch.bfloat16)
    batches: Batches = [{"input_ids": torch.arange(3, 59).reshape(8, 7) + shift} for shift in (0, 20)]
    drift = measure_drift(candidate, reference, batches)
    check(drift, plain_figures(*(torch.cat(logits_of(one, batches)) for one in (reference, candidate))))
    assert (drift.kind, drift.positions, drift.perplexity_ratio) == ("classes", 16, None)


def test_one_class_is_a_value() -> None:
    """Logits of one class are values: a softmax over them is always 1, and would hide the drift."""
    inputs = [{"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(0))}]
    drift = measure_drift(lambda x: {"logits": x[:, :1] * 2}, lambda x: {"logits": x[:, :1]}, inputs)
    assert (drift.kind, drift.rel_rms) == ("values", pytest.approx(1.0))


def test_pixels() -> None:
    """A segmentation model is compared pixel by pixel, with the reference's predictions as the truth of the mIoU."""
    batches = [{"pixel_values": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(n))} for n in (1, 2)]
    reference, candidate = tiny("segformer"), tiny("segformer", torch.bfloat16)
    drift = measure_drift(candidate, reference, batches)
    halved = [{"pixel_values": one["pixel_values"].bfloat16()} for one in batches]
    theirs, mine = torch.cat(logits_of(reference, batches)), torch.cat(logits_of(candidate, halved))
    rows = [one.movedim(1, 3).flatten(0, 2) for one in (theirs, mine)]
    expected = plain_figures(*rows)
    check(drift, expected, but=("kl_p99",))
    assert expected["kl_p99"] <= drift.kl_p99 * (1 + 1e-6)
    assert drift.kl_p99 <= expected["kl_p99"] * 1.0006
    a, b = (one.argmax(1) for one in rows)
    pairs = [(((a == n) & (b == n)).sum(), ((a == n) | (b == n)).sum()) for n in range(3)]
    assert drift.kind == "pixels"
    assert drift.miou == pytest.approx(float(np.mean([both / either for both, either in pairs if either])))


def test_values() -> None:
    """A model without logits is compared by its last hidden state: no KL, a cosine a position."""

    def make(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        return tf.BertModel(tf.BertConfig(vocab_size=96, **sizes)).to(dtype).eval()

    reference, candidate = make(torch.float32), make(torch.bfloat16)
    batch = {"input_ids": torch.arange(3, 19).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    batch["attention_mask"][1, 5:] = 0
    drift = measure_drift(candidate, reference, [batch])
    with torch.inference_mode():
        a, b = (one(**batch).last_hidden_state[batch["attention_mask"] > 0].double() for one in (reference, candidate))
    assert (drift.kind, drift.positions, drift.kl_mean, drift.kl_p99) == ("values", 13, 0.0, 0.0)
    assert drift.rel_rms == pytest.approx(float((b - a).norm() / a.norm()))
    assert drift.hidden_cosine == pytest.approx(float(torch.cosine_similarity(a, b).mean()))
    assert drift.top1_agreement == pytest.approx(float((a.argmax(1) == b.argmax(1)).double().mean()))


def test_large_vocabulary() -> None:
    """Chunks of rows add up to the whole: here a chunk holds 7 of the 20 positions."""
    random = torch.Generator().manual_seed(0)
    a = torch.randn(1, 20, 150_000, generator=random)
    b = a + 0.1 * torch.randn(1, 20, 150_000, generator=random)
    drift = measure_drift(lambda x: {"logits": b}, lambda x: {"logits": a}, [{"x": torch.arange(20)[None]}])
    check(drift, plain_figures(a[0], b[0]))


def test_modules_come_back_as_they_were() -> None:
    """A module in training mode is measured in eval mode, and is in training mode again afterwards, part by part."""
    model = tiny("qwen3").train()
    model.model.layers[0].eval()
    before = [part.training for part in model.modules()]
    assert measure_drift(model, tiny("qwen3"), random_batches(96, tokens_per_batch=8, batches=1)).max_abs == 0
    assert [part.training for part in model.modules()] == before


def test_progress() -> None:
    """The caller is told of every batch."""
    seen: list[int] = []
    batches = random_batches(96, tokens_per_batch=8, batches=3)
    measure_drift(tiny("qwen3"), tiny("qwen3"), batches, progress=seen.append)
    assert seen == [1, 2, 3]
