"""What a user's own processor returns is cast to the model's dtype where the model wants that, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from torch import Tensor, nn
from transformers.utils import ModelOutput
from zoo import ZOO

from safe_dtype import SafeAutoModel, guard, patched, report

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@dataclass(frozen=True)
class Case:
    """A model of the zoo, and what its processor makes of a picture or a sound."""

    model: str
    inputs: Callable[[], Any]


def picture(side: int) -> Image.Image:
    """Return a picture of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def pictures(processor: type, side: int = 32, **more: Any) -> Any:
    """Return what an image processor makes of two pictures."""
    return processor(size={"height": side, "width": side}, **more)(
        [picture(side), picture(side + 8)], return_tensors="pt"
    )


def tone(samples: int) -> np.ndarray:
    """Return a tone, of 16000 samples a second."""
    return np.sin(np.arange(samples) / 7).astype(np.float32)


def sounds(extractor: Any, *lengths: int) -> Any:
    """Return what a feature extractor makes of tones of these lengths."""
    return extractor([tone(samples) for samples in lengths], sampling_rate=16000, return_tensors="pt", padding=True)


def tokens(length: int = 7) -> dict[str, Tensor]:
    """Return what a tokenizer returns, beside pictures."""
    ids = torch.arange(3, 3 + 2 * length).reshape(2, length) % 90
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def points() -> Any:
    """Return what SAM's processor returns: a point in a picture in float64, and what it is in whole numbers."""
    returned = pictures(tf.ViTImageProcessor)
    returned["input_points"] = torch.tensor([[[[9.3, 21.7]]], [[[30.1, 4.2]]]], dtype=FP64)
    returned["input_labels"] = torch.ones(2, 1, 1, dtype=torch.long)
    return returned


CASES: dict[str, Case] = {
    "vit": Case("vit", lambda: pictures(tf.ViTImageProcessor)),
    "segformer": Case("segformer", lambda: pictures(tf.SegformerImageProcessor, 64)),
    "detr": Case("detr", lambda: pictures(tf.DetrImageProcessor, 64)),
    "dpt": Case("dpt", lambda: pictures(tf.DPTImageProcessor)),
    "sam": Case("sam", points),
    "clip": Case("clip", lambda: tf.BatchEncoding(tokens() | dict(pictures(tf.ViTImageProcessor)))),
    "owlvit": Case("owlvit", lambda: tokens() | dict(pictures(tf.OwlViTImageProcessor))),
    "llava": Case(
        "llava",
        lambda: {
            "input_ids": torch.tensor([[1, 95, 95, 95, 95, 7, 8]]),
            "pixel_values": tf.ViTImageProcessor(size={"height": 16, "width": 16})(picture(16), return_tensors="pt")["pixel_values"],
        },
    ),
    "wav2vec2": Case(
        "wav2vec2-ctc", lambda: sounds(tf.Wav2Vec2FeatureExtractor(return_attention_mask=True), 400, 300)
    ),
    "whisper": Case(
        "whisper",
        lambda: {
            **tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=800, return_attention_mask=True)(
                tone(9000), sampling_rate=16000, return_tensors="pt"
            ),
            "decoder_input_ids": torch.arange(3, 8)[None],
        },
    ),
    "encodec": Case("encodec", lambda: sounds(tf.EncodecFeatureExtractor(sampling_rate=16000), 400, 400)),
    "decision": Case("decision", ZOO["decision"].inputs),
}  # fmt: skip


def floats_in(inputs: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Return the inputs with their floats in `dtype`."""
    return {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}


@torch.no_grad()
def numbers(model: Any, inputs: Any) -> list[Tensor]:
    """Return every tensor that a model gives, what it generates among them."""
    torch.manual_seed(0)
    given = list(tensors_in(model(**inputs)))
    if model.can_generate() and "decoder_input_ids" not in inputs:
        given.append(model.generate(**inputs, max_new_tokens=3, do_sample=False))
    return given


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, ModelOutput):
        value = value.to_tuple()
    return [tensor for one in value for tensor in tensors_in(one)] if isinstance(value, tuple | list) else []


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Compare bit for bit, dtypes too."""
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine.nan_to_num(), other.nan_to_num())


QUICK = ("vit", "clip", "sam", "wav2vec2")


@pytest.mark.parametrize(
    ("name", "dtype", "returned"),
    [
        pytest.param(name, dtype, returned, marks=() if name in QUICK and dtype is BF16 else pytest.mark.slow)
        for name in CASES
        for dtype, returned in ((BF16, FP32), (FP16, FP32), (BF16, FP64))
    ],
)
def test_as_cast_by_hand(name: str, dtype: torch.dtype, returned: torch.dtype) -> None:
    """What a processor returns gives the bits of inputs that are cast by hand, twice, without an event, in strict mode too."""
    plain, _ = ZOO[CASES[name].model].born(dtype)
    model, _ = ZOO[CASES[name].model].born(dtype)
    guard(model, policy="strict")
    inputs = floats_in(CASES[name].inputs(), returned)
    wanted = numbers(plain, floats_in(inputs, dtype))
    assert_same(numbers(model, inputs), wanted)
    assert_same(numbers(model, inputs), wanted)
    assert report(model).events == ()
    assert report(model).refusals == ()
    assert {weight.dtype for weight in model.parameters()} == {dtype}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loaded_by_either_way(name: str, tmp_path: Path) -> None:
    """The same for a model that SafeAutoModel loads, and for one that a script loads under `patched()`.

    Their plans may compute attention in another way than plain, so they are held to what they give for cast inputs themselves.
    """
    plain, _ = ZOO[CASES[name].model].born(BF16)
    plain.save_pretrained(tmp_path)
    inputs = CASES[name].inputs()
    with patched(tell="nothing"):
        in_a_script = type(plain).from_pretrained(tmp_path, dtype=BF16)
    for model in (SafeAutoModel.from_pretrained(tmp_path, dtype=BF16), in_a_script):
        assert_same(numbers(model, inputs), numbers(model, floats_in(inputs, BF16)))
        assert report(model).events == ()


class OfOneArgument(nn.Module):
    """A model with code of its own that takes all that its processor returns as one argument."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen = seen

    def forward(self, inputs: Any) -> Tensor:
        """Note what arrives, and use it."""
        self.seen.append(inputs)
        return self.layer(inputs["pictures"][0]["pixels"]) * inputs["places"].bool()


def test_everything_in_one_argument() -> None:
    """Floats are cast in a batch of lists of dictionaries; whole numbers, masks and texts are the caller's own; so is the batch."""
    seen: list[Any] = []
    model = guard(OfOneArgument(seen).to(BF16).eval(), policy="strict")
    inputs = tf.BatchFeature(
        {
            "pictures": [{"pixels": torch.ones(2, 4), "size": torch.tensor([2, 2]), "name": "a picture"}],
            "places": torch.arange(4),
            "mask": torch.ones(4, dtype=torch.bool),
        }
    )
    assert model(inputs).dtype == BF16
    assert report(model).events == ()
    arrived = seen[-1]
    assert type(arrived) is tf.BatchFeature
    assert arrived["pictures"][0]["pixels"].dtype == BF16
    assert inputs["pictures"][0]["pixels"].dtype == FP32
    assert arrived["places"] is inputs["places"]
    assert arrived["mask"] is inputs["mask"]
    assert arrived["pictures"][0]["size"] is inputs["pictures"][0]["size"]
    assert arrived["pictures"][0]["name"] == "a picture"
