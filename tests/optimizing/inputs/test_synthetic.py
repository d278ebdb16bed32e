"""Batches that are made for a model: they fit, they repeat themselves, and they take the other branches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from optimizing.zoo import ZOO
from safetensors.torch import save_file

from safe_dtype.errors import NotOptimizableError
from safe_dtype.optimizing.graphs.flat import outputs_of
from safe_dtype.optimizing.inputs.synthetic import Made, batches_for, batches_of, complete, held_out_of, read_inputs
from safe_dtype.optimizing.nouns.job import Dynamic

_LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


_TEXT = {**_LAYERS, "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


_VISION = {**_LAYERS, "image_size": 32, "patch_size": 8}


_PAIR = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
}  # fmt: skip


# The keypoint matcher attends from every keypoint to all others, and noise is full of them.
_SMALL = {"superpoint": {"height": 64, "width": 64}, "lightglue": {"height": 32, "width": 32}}


_OF_TRANSFORMERS = [name for name in ZOO if name not in ("branch", "patches")]


def _clip() -> tf.PreTrainedModel:
    text = {**_TEXT, "max_position_embeddings": 16}
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16))


def _llava() -> tf.PreTrainedModel:
    text = tf.LlamaConfig(**_TEXT, num_key_value_heads=2)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(text_config=text, vision_config=tf.CLIPVisionConfig(**_VISION), image_token_id=5)
    )


def _trocr() -> tf.PreTrainedModel:
    decoder = tf.BertConfig(**_TEXT, is_decoder=True, add_cross_attention=True).to_dict()
    encoder = tf.ViTConfig(**_VISION).to_dict()
    return tf.VisionEncoderDecoderModel(tf.VisionEncoderDecoderConfig(encoder=encoder, decoder=decoder))


def _wav2vec2() -> tf.PreTrainedModel:
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    return tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**_TEXT, **convolutions))


def _ast() -> tf.PreTrainedModel:
    return tf.ASTForAudioClassification(tf.ASTConfig(**_LAYERS, max_length=64, num_mel_bins=32))


def _videomae() -> tf.PreTrainedModel:
    return tf.VideoMAEForVideoClassification(tf.VideoMAEConfig(**_VISION, num_frames=4))


def _speech2text() -> tf.PreTrainedModel:
    return tf.Speech2TextForConditionalGeneration(tf.Speech2TextConfig(**_PAIR, conv_channels=32))


def _roberta() -> tf.PreTrainedModel:
    return tf.RobertaForMaskedLM(
        tf.RobertaConfig(**{**_TEXT, "pad_token_id": 1}, max_position_embeddings=20, type_vocab_size=1)
    )


def _of(name: str, dynamic: Dynamic | None = None) -> tuple[Any, list[Made]]:
    model = ZOO[name].model()
    return model, batches_for(model, model.config, dynamic=dynamic or Dynamic(), sizes=_SMALL.get(name, {}))


def _run(model: torch.nn.Module, made: Made) -> dict[str, torch.Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        return outputs_of(model(**made.tensors))


def _require_finite(model: torch.nn.Module, batches: list[Made]) -> None:
    for one in batches:
        for name, output in _run(model, one).items():
            assert bool(output.isfinite().all()), (one.about, name)


def _held_out(batches: list[Made], about: str) -> Made:
    return next(one for one in batches if one.role == "held out" and about in one.about)


@pytest.mark.parametrize("name", _OF_TRANSFORMERS)
def test_zoo(name: str) -> None:
    """Every model of the zoo runs on every batch made for it, and answers with numbers."""
    model, batches = _of(name)
    assert [one.role for one in batches[:2]] == ["traced", "held out"]
    assert all(one.tensors[next(iter(one.tensors))].shape[0] == 2 for one in batches)
    assert model.main_input_name in batches[0].tensors
    _require_finite(model, batches)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        pytest.param(_clip, {"input_ids", "attention_mask", "pixel_values"}, id="text-and-image"),
        pytest.param(_llava, {"input_ids", "attention_mask"}, id="image-marked-in-text"),
        pytest.param(_trocr, {"pixel_values", "decoder_input_ids", "decoder_attention_mask"}, id="image-to-text"),
        pytest.param(_wav2vec2, {"input_values"}, id="samples"),
        pytest.param(_ast, {"input_values"}, id="spectrogram"),
        pytest.param(_speech2text, {"input_features", "decoder_input_ids", "decoder_attention_mask"}, id="frames"),
        pytest.param(_videomae, {"pixel_values"}, id="video"),
        pytest.param(_roberta, {"input_ids", "attention_mask"}, id="positions-behind-the-padding-id"),
    ],
)
def test_other_architectures(make: Callable[[], Any], inputs: set[str]) -> None:
    """What goes with the main input is there, nothing else is, and the model takes it in batches of one to three."""
    torch.manual_seed(0)
    model = make().eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    batches = batches_for(model, model.config, dynamic=Dynamic(batch=(1, 3)))
    assert batches[0].tensors.keys() == inputs
    _require_finite(model, batches)


def test_repeats_itself() -> None:
    """The same seed gives the same numbers, another seed gives others; the class does as well as the model."""
    config = ZOO["qwen3"].model().config
    first, again = (batches_for(tf.Qwen3ForCausalLM, config)[0].tensors["input_ids"] for _ in range(2))
    other = batches_for(tf.Qwen3ForCausalLM, config, seed=1)[0].tensors["input_ids"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_held_out_batches_differ() -> None:
    """No two batches are the same, and no held-out one is the traced one."""
    _, batches = _of("longformer")
    pairs = [(a, b) for number, a in enumerate(batches) for b in batches[:number]]
    assert pairs
    assert all(any(not torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors) for a, b in pairs)


def test_ids() -> None:
    """Ids are of the vocabulary, none is special, and where the mask hides them there is padding."""
    _, batches = _of("qwen3")
    for one in batches:
        ids, mask = one.tensors["input_ids"], one.tensors["attention_mask"]
        assert bool((ids[mask == 0] == 0).all())
        assert int(ids[mask == 1].min()) >= 3
        assert int(ids.max()) < 97
    assert {3, 96} <= set(torch.cat([one.tensors["input_ids"].flatten() for one in batches]).tolist())


def test_vocabulary() -> None:
    """A tokenizer that uses fewer ids than the model has rows for can say so."""
    config = ZOO["qwen3"].model().config
    batches = batches_for(tf.Qwen3ForCausalLM, config, vocabulary=10)
    assert max(int(one.tensors["input_ids"].max()) for one in batches) == 9


def test_masks() -> None:
    """One batch has rows of different lengths, and one has one token a row."""
    _, batches = _of("qwen3")
    lengths = {tuple(one.tensors["attention_mask"].sum(1).tolist()) for one in batches}
    assert lengths == {(128, 128), (128, 64), (1, 1)}


def test_values_to_both_sides() -> None:
    """Pixels are shifted up in one batch and down in another, so that a branch on the sign of a sum sees both."""
    _, batches = _of("vit")
    means = [float(one.tensors["pixel_values"].mean()) for one in batches]
    assert min(means) < -0.9
    assert max(means) > 0.9
    assert abs(means[0]) < 0.1


def test_longformer_takes_both_branches() -> None:
    """The traced batch attends globally to nothing; a held-out one to the first token of every row."""
    _, batches = _of("longformer")
    flags = [bool(one.tensors["global_attention_mask"].any()) for one in batches]
    assert flags[0] is False
    assert True in flags


def test_mixtral_sees_other_experts() -> None:
    """Where one id is repeated, experts are left out that the traced batch hits."""
    model, batches = _of("mixtral_eager")
    hit: list[set[int]] = []

    def note(_: object, __: object, routed: Any) -> None:
        hit[-1] |= set(routed[-1].flatten().tolist())

    router = model.model.layers[0].mlp.gate
    router.register_forward_hook(note)
    for one in batches:
        hit.append(set())
        _run(model, one)
    assert hit[0] == {0, 1, 2, 3}
    assert any(len(experts) < 4 for experts in hit)


@pytest.mark.parametrize(
    ("name", "dynamic", "shapes"),
    [
        pytest.param("vit", Dynamic(batch=(1, 5)), {(2, 3, 64, 64), (1, 3, 64, 64), (5, 3, 64, 64)}, id="batch"),
        pytest.param("vit", Dynamic(batch=(4, 8)), {(4, 3, 64, 64), (8, 3, 64, 64)}, id="more-than-two"),
        pytest.param("vit", Dynamic(batch=(1, 1)), {(1, 3, 64, 64)}, id="only-one"),
        pytest.param(
            "sapiens2",
            Dynamic(batch=(1, 3), dims={"pixel_values": {2: (60, 100), 3: (32, 64)}}),
            {(2, 3, 64, 64), (1, 3, 64, 32), (3, 3, 96, 64), (2, 3, 64, 64)},
            id="sides-are-multiples-of-the-patch",
        ),
        pytest.param(
            "segformer",
            Dynamic(dims={"pixel_values": {2: (64, 96), 3: (32, 128)}}),
            {(2, 3, 96, 128), (2, 3, 64, 32), (2, 3, 64, 128)},
            id="crossed",
        ),
    ],
)
def test_ends_of_the_ranges(name: str, dynamic: Dynamic, shapes: set[tuple[int, ...]]) -> None:
    """The ends of every declared range occur, and nothing outside of it."""
    model, batches = _of(name, dynamic)
    assert {tuple(one.tensors["pixel_values"].shape) for one in batches} == shapes
    _require_finite(model, batches)


def test_one_token() -> None:
    """A declared range of lengths is gone through to one token, and the mask follows the ids."""
    dynamic = Dynamic(batch=(1, 4), dims={"input_ids": {1: (1, 20)}})
    model, batches = _of("switch", dynamic)
    shapes = {tuple(one.tensors["input_ids"].shape) for one in batches}
    assert shapes == {(2, 20), (1, 1), (4, 20)}
    assert all(one.tensors["attention_mask"].shape == one.tensors["input_ids"].shape for one in batches)
    assert {one.tensors["decoder_input_ids"].shape[1] for one in batches} == {8}
    _require_finite(model, batches)


def test_complete() -> None:
    """The ranges that a form is made with name every input that varies with a declared one."""
    dynamic = Dynamic(batch=(1, 4), dims={"input_ids": {1: (1, 20)}, "pixel_values": {3: (32, 64)}})
    _, batches = _of("vilt", Dynamic(dims={"input_ids": {1: (1, 10)}}))
    found = complete(dynamic, batches[0].tensors)
    assert found.batch == (1, 4)
    assert found.dims == {
        "input_ids": {1: (1, 20)}, "attention_mask": {1: (1, 20)}, "token_type_ids": {1: (1, 20)},
        "pixel_values": {3: (32, 64)}, "pixel_mask": {2: (32, 64)},
    }  # fmt: skip


def test_sizes() -> None:
    """The traced batch can be given its size: that of the data it is for."""
    model = ZOO["qwen3"].model()
    batches = batches_for(model, model.config, sizes={"batch": 3, "length": 7})
    assert {tuple(one.tensors["input_ids"].shape) for one in batches} == {(3, 7)}


@pytest.mark.parametrize(
    ("dims", "named"),
    [
        pytest.param({"pixels": {2: (32, 64)}}, "pixels, and the inputs are pixel_values", id="no-such-input"),
        pytest.param({"pixel_values": {1: (1, 3)}}, "fixed size 3", id="channels"),
        pytest.param({"pixel_values": {7: (1, 3)}}, "no such dimension", id="no-such-dimension"),
        pytest.param({"pixel_values": {2: (64, 32)}}, "no size in common", id="empty"),
    ],
)
def test_ranges_that_mean_nothing(dims: dict[str, dict[int, tuple[int, int]]], named: str) -> None:
    """A range for what does not vary is an error, not a range that is forgotten."""
    with pytest.raises(NotOptimizableError, match=named):
        _of("vit", Dynamic(dims=dims))


@pytest.mark.parametrize("seed", range(4))
def test_branch_takes_both_branches(seed: int) -> None:
    """A module that branches on the sign of a sum goes both ways, whatever the given batch does."""
    specimen = ZOO["branch"]
    model = specimen.model()
    ways = set()
    for one in batches_of(specimen.batch(seed, 2, 5)):
        with torch.no_grad():
            ways.add(bool(model.linear(one.tensors["x"]).sum() > 0))
        _run(model, one)
    assert ways == {True, False}


@pytest.mark.parametrize("name", list(ZOO))
def test_held_out_of_the_zoo(name: str) -> None:
    """From any batch that a model takes, others are made that it takes: nothing is known of the model."""
    specimen = ZOO[name]
    model, given = specimen.model(), specimen.inputs()
    dynamic = Dynamic(batch=(given["pixel_values"].shape[0],) * 2) if name == "lightglue" else Dynamic(batch=(1, 3))
    found = held_out_of(given, dynamic)
    for one in found:
        _run(model, one)
        for key, tensor in one.tensors.items():
            assert tensor.dtype == given[key].dtype
            assert given[key].min() <= tensor.min() or key.endswith("mask")
            assert tensor.max() <= given[key].max() or key.endswith("mask")
    assert not any(
        torch.equal(one.tensors[key], given[key]) for one in found for key in ("x", "input_ids") if key in given
    )


def test_given_lengths_go_together() -> None:
    """A mask of the length of the ids gets shorter with them; an input of another length does not."""
    given = ZOO["switch"].inputs()
    found = held_out_of(given, Dynamic(dims={"input_ids": {1: (2, 16)}}))
    shapes = {(tuple(one.tensors["input_ids"].shape), tuple(one.tensors["attention_mask"].shape)) for one in found}
    assert shapes == {((2, 9), (2, 9)), ((2, 2), (2, 2)), ((2, 16), (2, 16))}
    assert {tuple(one.tensors["decoder_input_ids"].shape) for one in found} == {(2, 5)}


def test_boxes_stay_boxes() -> None:
    """Integers of three dimensions are kept together along the last: no corner comes to lie before the first."""
    boxes = torch.tensor([[[0, 0, 5, 9], [10, 20, 30, 40]], [[1, 1, 2, 2], [50, 5, 60, 7]]])
    rows = {tuple(one) for one in boxes.reshape(-1, 4).tolist()}
    found = held_out_of({"bbox": boxes, "input_ids": torch.arange(4).reshape(2, 2)}, Dynamic())
    assert {tuple(one) for made in found for one in made.tensors["bbox"].reshape(-1, 4).tolist()} <= rows


def test_unknown_masks_stay() -> None:
    """A mask that is added to scores stays as it was given, and cannot change its size."""
    scores = torch.zeros(2, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    given = {"input_ids": torch.arange(8).reshape(2, 4), "attention_mask": scores}
    assert all(torch.equal(one.tensors["attention_mask"], scores) for one in held_out_of(given, Dynamic()))
    with pytest.raises(NotOptimizableError, match="attention_mask is needed in shape"):
        held_out_of(given, Dynamic(batch=(1, 4)))


@pytest.mark.parametrize(
    ("given", "dynamic"),
    [
        pytest.param({}, Dynamic(), id="nothing"),
        pytest.param({"x": torch.zeros(2, 4)}, Dynamic(batch=(4, 8)), id="outside-of-the-range"),
        pytest.param({"x": torch.zeros(2, 4), "y": torch.zeros(3)}, Dynamic(batch=(1, 8)), id="no-common-batch"),
    ],
)
def test_given_that_does_not_fit(given: dict[str, torch.Tensor], dynamic: Dynamic) -> None:
    """A batch that contradicts its ranges is refused."""
    with pytest.raises(NotOptimizableError):
        held_out_of(given, dynamic)


def test_file(tmp_path: Path) -> None:
    """A safetensors file is the traced batch, as it is, and held-out ones come with it."""
    path = tmp_path / "mine.safetensors"
    given = ZOO["qwen3"].inputs()
    save_file(given, path)
    traced, *others = batches_of(path)
    assert (traced.role, traced.about) == ("traced", "mine.safetensors")
    assert torch.equal(traced.tensors["input_ids"], given["input_ids"])
    assert {one.role for one in others} == {"held out"}
    assert _held_out(others, "one id repeated").tensors["input_ids"].unique(dim=1).shape == (2, 1)


@pytest.mark.parametrize("content", [None, b"no tensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_no_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, broken or empty is named."""
    path = tmp_path / "mine.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotOptimizableError, match=r"mine\.safetensors"):
        read_inputs(path)
