"""Batches added up: the figures of classes, pixels and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from verifying.by_the_book import Batches, check, logits_of, plain_figures, tiny

from safe_dtype import measure_drift


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


def test_complex_values() -> None:
    """A complex number is compared whole: its imaginary part as well."""
    reference = torch.randn(4, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    candidate = torch.complex(reference.real, reference.imag + 1)
    drift = measure_drift(lambda **_: candidate, lambda **_: reference, [{"x": torch.arange(4)}])
    assert (drift.kind, drift.positions) == ("values", 4)
    assert drift.rel_rms == pytest.approx(float((candidate - reference).norm() / reference.norm()))


def test_one_number() -> None:
    """A model may return a single number for a batch."""
    batches = [{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0, 5.0])}]
    drift = measure_drift(lambda x: x.sum() * 2, lambda x: x.sum(), batches)
    assert (drift.kind, drift.positions, drift.rel_rms) == ("values", 2, 1.0)
