"""sentence-transformers loads planned models under `patched`, and a failure amid a text gives the numbers of float32."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from safe_dtype import FLOAT32, patched, plan_of, report
from safe_dtype.testing import fault

pytestmark = [pytest.mark.needs("sentence_transformers"), pytest.mark.filterwarnings("default")]

TEXTS = ["a cat", "a dog cat dog", "dog", "cat cat cat a dog"]
PAIRS = [("a cat", "a dog"), ("cat", "dog dog"), ("dog", "cat a")]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 60,
}


def saved(folder: Path, head: str, **options: Any) -> str:
    """Save a tiny BERT in bfloat16, with a tokenizer of a few words."""
    torch.manual_seed(0)
    getattr(tf, f"Bert{head}")(tf.BertConfig(**SIZES, **options)).bfloat16().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]))
    tf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def library(name: str) -> Any:
    """Return a class of sentence-transformers."""
    return getattr(import_module("sentence_transformers"), name)


def dense(model: Any) -> Any:
    """Return embeddings, two texts at a time."""
    return model.encode(TEXTS, batch_size=2, show_progress_bar=False)


def sparse(model: Any) -> Any:
    """Return sparse embeddings, as an array."""
    return model.encode(TEXTS, batch_size=2, show_progress_bar=False).to_dense().float().numpy()


def scores(model: Any) -> Any:
    """Return the scores of pairs."""
    return model.predict(PAIRS, batch_size=2, show_progress_bar=False)


# By the class: the head of its model, where it has that model, a layer of it, and what is asked.
KINDS: dict[str, tuple[str, dict[str, Any], Any, str, Any]] = {
    "SentenceTransformer": ("Model", {}, lambda made: made[0].auto_model, "encoder.layer.1.output.dense", dense),
    "SparseEncoder": ("ForMaskedLM", {}, lambda made: made[0].auto_model, "cls.predictions.transform.dense", sparse),
    "CrossEncoder": ("ForSequenceClassification", {"num_labels": 1}, lambda made: made.model, "classifier", scores),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["nan", "not_implemented"])
def test_rescued(name: str, kind: str, tmp_path: Path) -> None:
    """Each of the three encoders, loaded as ever: its model is planned, and what it gives is what float32 gives."""
    head, options, inside, layer, ask = KINDS[name]
    folder = saved(tmp_path, head, **options)
    wide = library(name)(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    with patched(tell="nothing"):
        made = library(name)(folder, device="cpu")
    model = inside(made)
    narrow = plan_of(model).storage
    assert narrow != FLOAT32
    with fault(model, layer, kind) as put:
        found = ask(made)
    assert put.fired
    assert [event.after for event in report(model).events] == [FLOAT32]
    np.testing.assert_array_equal(found, ask(wide))


@pytest.mark.parametrize("name", KINDS)
def test_healthy(name: str, tmp_path: Path) -> None:
    """While all is well the bits are those of the plain library in that dtype."""
    head, options, inside, _, ask = KINDS[name]
    folder = saved(tmp_path, head, **options)
    with patched(tell="nothing"):
        made = library(name)(folder, device="cpu")
    dtype = getattr(torch, plan_of(inside(made)).storage.name)
    plain = library(name)(folder, device="cpu", model_kwargs={"dtype": dtype})
    np.testing.assert_array_equal(np.asarray(ask(made), dtype=np.float64), np.asarray(ask(plain), dtype=np.float64))
    assert report(inside(made)).events == ()
