"""A batch is answered token by token, by the step that `generate` compiles, as one call answers it."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from optimizing.compiled_generation import captured_only, graphs, tiny_generator

from safe_dtype.optimizing.graphs.static_steps import compiled_steps, eager_steps, require_generator, static_length
from safe_dtype.optimizing.nouns.job import Dynamic

__all__ = ["captured_only"]

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
PADDED = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}  # as held-out batches are: on the right


@pytest.mark.needs("torch>=2.13")
@torch.no_grad()
@pytest.mark.usefixtures("captured_only")
@pytest.mark.parametrize("inputs", [PADDED, {"input_ids": IDS[:1]}], ids=["padded", "one-row-without-a-mask"])
def test_as_one_call(inputs: dict[str, torch.Tensor]) -> None:
    """Eager steps and compiled ones give the logits of one call of the model, at every position."""
    model = tiny_generator()
    expected = model(**inputs).logits
    for run in (eager_steps(model), compiled_steps(model, 16, "cpu")):
        for _ in range(2):
            answer = run(**inputs)
            assert list(answer) == ["logits"]
            torch.testing.assert_close(answer["logits"], expected)
    assert graphs() == 1


@pytest.mark.usefixtures("captured_only")
def test_longer_than_the_cache() -> None:
    """A batch that the cache has no room for is an error that tells what to ask for."""
    run = compiled_steps(tiny_generator(), 4, "cpu")
    with pytest.raises(ValueError, match="a text has 5 tokens, and the cache 4 positions"):
        run(**PADDED)


@pytest.mark.parametrize(
    ("dynamic", "length"),
    [
        pytest.param(Dynamic(), 1024, id="nothing-asked-for"),
        pytest.param(Dynamic(dims={"input_ids": {1: (8, 64)}}), 1024, id="shorter"),
        pytest.param(Dynamic((1, 8), {"input_ids": {1: (8, 3000)}}), 3000, id="longer"),
        pytest.param(Dynamic(dims={"input_ids": {1: (8, 9000)}}), 4096, id="longer-than-the-model-knows"),
    ],
)
def test_static_length(dynamic: Dynamic, length: int) -> None:
    """The cache holds the longest text that was asked for, 1024 tokens at least, and never more than the model knows."""
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=1, max_position_embeddings=4096))
    assert static_length(model, dynamic) == length


@pytest.mark.parametrize(
    ("model_class", "names", "problem"),
    [
        pytest.param(tf.BertModel, {"input_ids"}, "BertModel has no generate", id="no-generate"),
        pytest.param(tf.T5ForConditionalGeneration, {"input_ids"}, "has an encoder", id="encoder"),
        pytest.param(tf.LlamaForCausalLM, {"input_ids", "pixel_values"}, "is given pixel_values", id="more-inputs"),
        pytest.param(tf.MambaForCausalLM, {"input_ids"}, "", id="states-of-fixed-size"),
        pytest.param(tf.LlamaForCausalLM, {"input_ids", "attention_mask"}, "", id="decoder"),
    ],
)
def test_what_can_be_compiled(model_class: type[tf.PreTrainedModel], names: set[str], problem: str) -> None:
    """Only a decoder alone, which is given tokens, is compiled step by step; of others the reason is told."""
    config = model_class.config_class(num_hidden_layers=1, num_layers=1)
    with torch.device("meta"):
        model = model_class(config)
    inputs = dict.fromkeys(names, torch.zeros(1, 1, dtype=torch.long))
    if not problem:
        require_generator(model, inputs)
        return
    with pytest.raises(ValueError, match=problem):
        require_generator(model, inputs)
