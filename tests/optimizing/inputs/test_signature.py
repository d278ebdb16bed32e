"""Which inputs a model of transformers takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers as tf
from optimizing.zoo_segmentation import oneformer

from safe_dtype.errors import NotOptimizableError
from safe_dtype.optimizing.inputs.signature import positions_of, slots_for
from safe_dtype.optimizing.inputs.synthetic import batches_for

_PAIR = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "named"),
    [
        pytest.param(
            lambda: tf.TimeSeriesTransformerModel(tf.TimeSeriesTransformerConfig(prediction_length=4)),
            "past_values",
            id="time-series",
        ),
        pytest.param(oneformer, "takes task_inputs, which", id="two-main-inputs"),
        pytest.param(
            lambda: tf.BartForSequenceClassification(tf.BartConfig(**_PAIR)), "each text ends", id="needs-eos"
        ),
    ],
)
def test_what_cannot_be_made(make: Callable[[], Any], named: str) -> None:
    """An architecture whose inputs a config does not tell is refused, and the error says what to pass."""
    model = make()
    with pytest.raises(NotOptimizableError, match=named) as raised:
        batches_for(model, model.config)
    assert "--inputs FILE" in str(raised.value)


def test_slots() -> None:
    """The inputs of a text model are its ids, their mask and their types; special ids are not drawn."""
    config = tf.BertConfig(vocab_size=50, pad_token_id=0, max_position_embeddings=40, type_vocab_size=2)
    planned = slots_for(tf.BertModel, config)
    assert [(slot.name, str(slot.kind.value), slot.high) for slot in planned.slots] == [
        ("input_ids", "ids", 49), ("attention_mask", "mask", 1), ("token_type_ids", "types", 1),
    ]  # fmt: skip
    assert (planned.slots[0].avoid, planned.slots[0].padding) == ((0,), 0)
    assert planned.sizes == {"length": 20}


def test_images() -> None:
    """The inputs of an image model have the size that the config names, in multiples of its patches."""
    planned = slots_for(tf.ViTModel, tf.ViTConfig(image_size=64, patch_size=16, num_channels=3))
    assert [slot.name for slot in planned.slots] == ["pixel_values"]
    assert planned.slots[0].dims == ("batch", 3, "height", "width")
    assert (planned.sizes, planned.patch) == ({"height": 64, "width": 64}, (16, 16))


def test_images_of_a_part_of_a_part() -> None:
    """Where only the backbone within the vision part names a size, it is that one."""
    vision = {"backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [64, 96]}}
    planned = slots_for(tf.Sam2Model, tf.Sam2Config(vision_config=vision))
    assert planned.sizes == {"height": 64, "width": 96}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (tf.BertConfig(max_position_embeddings=40), 40),
        (tf.GPT2Config(n_positions=30), 30),
        (tf.T5Config(), None),
    ],
)
def test_positions(config: tf.PreTrainedConfig, positions: int | None) -> None:
    """The number of positions has several names; a model with relative ones has none."""
    assert positions_of(config) == positions
