"""Weights that transformers fills with random numbers because names do not meet: said once, and refused where that is wanted."""

from __future__ import annotations

import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from published_models import PUBLISHED
from safetensors.torch import load_file, save_file

import safe_dtype
from safe_dtype import SafeAutoModel, SafeAutoModelForSequenceClassification, SafeDtypeWarning
from safe_dtype.errors import CheckpointError

WORDS = "with random numbers"
_SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with both of the heads that it was trained with."""
    return _saved(tf.BertForPreTraining(tf.BertConfig(**_SIZES)), tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a head of its own."""
    config = tf.Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False)
    return _saved(tf.Qwen3ForCausalLM(config), tmp_path_factory.mktemp("qwen3") / "model")


def _saved(model: Any, folder: Path) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def changed(source: Path, folder: Path, name_of: Callable[[str], str | None]) -> Path:
    """Copy a checkpoint, with the names for its weights that `name_of` gives them; without those that it gives none."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    named = {name: tensor for key, tensor in weights.items() if (name := name_of(key)) is not None}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def renamed(source: Path, folder: Path, pattern: str, name: str) -> Path:
    """Copy a checkpoint, with other names for its weights."""
    return changed(source, folder, lambda key: re.sub(pattern, name, key))


def said_of(load: Callable[[], Any]) -> list[str]:
    """Load, and return what is warned of random numbers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load()
    return [
        str(one.message) for one in caught if issubclass(one.category, SafeDtypeWarning) and WORDS in str(one.message)
    ]


@pytest.mark.parametrize(
    ("pattern", "name", "ours", "theirs"),
    [
        pytest.param(
            "self_attn",
            "attn",
            "model.layers.*.self_attn.k_norm.weight",
            "model.layers.*.attn.k_norm.weight",
            id="module",
        ),
        pytest.param(
            r"input_layernorm.weight", "input_layernorm.scale", "input_layernorm.weight", "scale", id="parameter"
        ),
        pytest.param(
            r"^model.norm.weight", "model.norm.scale", "model.norm.weight", "model.norm.scale", id="no-layer"
        ),
        pytest.param(r"model\.layers", "model.blocks", "model.layers.*.", "model.blocks.*.", id="stack"),
        pytest.param(r"^model\.", "backbone.", "model.layers.*.", "backbone.layers.*.", id="prefix"),
    ],
)
def test_other_names(pattern: str, name: str, ours: str, theirs: str, qwen3: Path, tmp_path: Path) -> None:
    """Weights that the files name otherwise are named, as the model and as the files have them, in one warning."""
    folder = renamed(qwen3, tmp_path / "renamed", pattern, name)
    (text,) = said_of(lambda: SafeAutoModel.from_pretrained(folder))
    in_model, in_files = text.split("the files have")
    assert text.startswith(f"{folder}: ")
    assert ours in in_model
    assert theirs in in_files
    assert "Next: check `architectures`" in text


def test_experts_of_a_mixture(tmp_path: Path) -> None:
    """Experts that are not joined, as those of Kimi-K2 were not, are named by the layer."""
    folder = PUBLISHED["kimi-k2"].save(tmp_path / "kimi")
    folder = renamed(folder, tmp_path / "renamed", r"experts\.(\d+)\.(\w+)_proj", r"experts.\1.\2")
    (text,) = said_of(lambda: SafeAutoModel.from_pretrained(folder))
    assert "model.layers.*.mlp.experts.gate_up_proj" in text


def test_most_of_a_model(qwen3: Path, tmp_path: Path) -> None:
    """Where the names have nothing in common, the share of the model that is random is said."""
    folder = renamed(qwen3, tmp_path / "renamed", r"\.", "_")
    (text,) = said_of(lambda: SafeAutoModel.from_pretrained(folder))
    assert "filled 100% of Qwen3ForCausalLM with random numbers" in text


def test_strict(qwen3: Path, tmp_path: Path) -> None:
    """A strict policy takes no random weights: the error carries what the warning says, and can be sent to another process."""
    folder = renamed(qwen3, tmp_path / "renamed", "self_attn", "attn")
    with pytest.raises(CheckpointError, match=r"model\.layers\.\*\.attn\.k_norm") as caught:
        SafeAutoModel.from_pretrained(folder, policy="strict")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("policy", ["auto", "strict"])
def test_who_asks_for_the_names(policy: str, qwen3: Path, tmp_path: Path) -> None:
    """A caller who asks transformers for the names that were not found is handed them, and told nothing beside."""
    folder = renamed(qwen3, tmp_path / "renamed", "self_attn", "attn")
    assert not said_of(lambda: SafeAutoModel.from_pretrained(folder, policy=policy, output_loading_info=True))
    _, names = SafeAutoModel.from_pretrained(folder, policy=policy, output_loading_info=True)
    assert names["missing_keys"]


def test_patched(qwen3: Path, tmp_path: Path) -> None:
    """A program that is patched is told as well."""
    folder = renamed(qwen3, tmp_path / "renamed", "self_attn", "attn")
    with safe_dtype.patched():
        assert len(said_of(lambda: tf.Qwen3ForCausalLM.from_pretrained(folder))) == 1


WITHOUT: dict[str, tuple[str, str]] = {
    "a layer": (r"^model\.layers\.1\.", "model.layers.1.input_layernorm.weight"),
    "one weight": (r"layers\.1\.mlp\.up_proj", "model.layers.1.mlp.up_proj.weight"),
    "its head": (r"^lm_head", "lm_head.weight"),
    "its embeddings": (r"embed_tokens", "model.embed_tokens.weight"),
}


@pytest.mark.parametrize("lacking", WITHOUT)
def test_what_its_files_must_have(lacking: str, qwen3: Path, tmp_path: Path) -> None:
    """A layer beside others, embeddings, and the head of the class that wrote the files are not left out on purpose."""
    pattern, name = WITHOUT[lacking]
    folder = changed(qwen3, tmp_path / "lacking", lambda key: None if re.search(pattern, key) else key)
    (text,) = said_of(lambda: SafeAutoModel.from_pretrained(folder))
    assert name in text
    assert "instead" not in text


def test_a_head_of_another_name(qwen3: Path, tmp_path: Path) -> None:
    """A head that the class that wrote the files has lost is said beside what they have in its place."""
    folder = renamed(qwen3, tmp_path / "renamed", r"^lm_head", "output")
    (text,) = said_of(lambda: SafeAutoModel.from_pretrained(folder))
    assert "do not have them: lm_head.weight; they have output.weight instead" in text


def test_a_tower_of_another_name(tmp_path: Path) -> None:
    """One tower of two, less than half of the model, is known by its layers where the files have it under another name."""
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = tf.Qwen3Config(**(_SIZES | {"vocab_size": 640}), num_key_value_heads=2, head_dim=8)
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=60)
    folder = _saved(tf.LlavaForConditionalGeneration(config), tmp_path / "llava")
    folder = renamed(folder, tmp_path / "renamed", r".*vision_tower", "image_encoder")
    (warned,) = said_of(lambda: SafeAutoModel.from_pretrained(folder))
    assert "the files have image_encoder." in warned


def _classifier(folder: Path) -> Any:
    return SafeAutoModelForSequenceClassification.from_pretrained(folder)


def _other_head(folder: Path) -> Any:
    """The head for whole sentences alone, and after that the one for words, which `cls` holds as well."""
    tf.BertForNextSentencePrediction.from_pretrained(folder).save_pretrained(folder.parent / "sentences")
    with safe_dtype.patched():
        return tf.BertForMaskedLM.from_pretrained(folder.parent / "sentences")


def _with_cross_attention(folder: Path) -> Any:
    with safe_dtype.patched():
        return tf.BertLMHeadModel.from_pretrained(folder, is_decoder=True, add_cross_attention=True)


def _without_pooler(folder: Path) -> Any:
    other = changed(folder, folder.parent / "no-pooler", lambda key: None if "pooler" in key else key)
    with safe_dtype.patched():
        return tf.BertModel.from_pretrained(other)


@pytest.mark.parametrize(
    "load",
    [_classifier, _other_head, _with_cross_attention, _without_pooler],
    ids=["classifier", "other-head", "cross-attention", "no-pooler"],
)
def test_new_on_purpose(load: Callable[[Path], Any], bert: Path) -> None:
    """What is new beside weights that were all found is nobody's mistake, whatever heads the files have."""
    assert said_of(lambda: load(bert)) == []


def test_a_large_new_head(bert: Path) -> None:
    """A head that is most of the model is new on purpose, where the base model was found."""
    with safe_dtype.patched():
        load = tf.AutoModelForSequenceClassification.from_pretrained
        assert said_of(lambda: load(bert, num_labels=5000)) == []


def test_buffers_of_older_versions(tmp_path: Path) -> None:
    """What older versions saved beside weights that are all found is no other name for new ones."""
    model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2))
    folder = _saved(model, tmp_path / "gpt2")
    weights = load_file(folder / "model.safetensors")
    weights |= {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with safe_dtype.patched():
        assert said_of(lambda: tf.GPT2LMHeadModel.from_pretrained(folder, add_cross_attention=True)) == []


def test_head_of_a_decoder(qwen3: Path) -> None:
    """A classifier in place of the head that the files have is new on purpose."""
    assert said_of(lambda: _classifier(qwen3)) == []


def test_transformers_is_left_as_it_was(qwen3: Path) -> None:
    """After a load its class has the very method that it had before."""
    before = tf.PreTrainedModel.__dict__["_adjust_missing_and_unexpected_keys"]
    SafeAutoModel.from_pretrained(qwen3)
    assert tf.PreTrainedModel.__dict__["_adjust_missing_and_unexpected_keys"] is before
