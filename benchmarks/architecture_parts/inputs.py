"""Inputs for a model of any class, as its processor would return them: floats in float32, whatever the model is in.

Nothing tells all that a forward expects, so several are made, and the first that the model takes in float32 is it.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from safe_dtype.errors import NotOptimizableError
from safe_dtype.optimizing.inputs.synthetic import batches_for
from safe_dtype.rescaling.discovery.config_keys import hidden_size

from .drawn import LENGTH, Inputs, noise, setting, tokens
from .mended import mended

Run = Callable[[Any, Inputs], Any]

_MISMATCH = re.compile(r"tokens:? \D*(\d+)\D+features:? \D*(\d+)", re.IGNORECASE)
_MARKS = (
    "image_token_id", "image_token_index", "image_patch_id", "image_pad_token_id", "media_placeholder_token_id",
    "video_token_id", "video_token_index",
)  # fmt: skip
_GRIDS = ("image_grid_thw", "grid_thws", "image_grid_hws", "target_sizes", "grid_thw")
_SOUND_MARKS = ("audio_token_id", "audio_token_index")
_OF_MARKS = ("mm_token_type_ids", "token_type_ids")  # 1 where an image is
_COUNTS = ("num_query_tokens",)  # of the marks of an image, where it is said
_MOST_ADJUSTMENTS = 6  # to what the model says of its inputs: marks of an image, names, sizes


def inputs_for(model: Any, run: Run) -> Inputs:
    """Return inputs that `model`, in float32, takes.

    Args:
        model: In float32.
        run: Calls the model.

    Raises:
        Exception: What the model raised over the first that was tried, where it takes none.
    """
    first: Exception | None = None
    for inputs in _candidates(model):
        adjusted: Inputs | None = inputs
        for _ in range(_MOST_ADJUSTMENTS):
            if adjusted is None:
                break
            taken = _without_notes(adjusted)
            error = _raised(run, model, taken)
            if error is None:
                return taken
            first = first or error
            adjusted = _with_marks(model.config, adjusted, str(error)) or mended(model, adjusted, error)
    raise first or ValueError(f"no inputs are known for {type(model).__name__}")


def _raised(run: Run, model: Any, inputs: Inputs) -> Exception | None:
    try:
        run(model, inputs)
    except Exception as exc:  # noqa: BLE001  # foreign code over inputs that it may not take
        return exc
    return None


def _without_notes(inputs: Inputs) -> Inputs:
    return {name: value for name, value in inputs.items() if not name.startswith("_")}


def _candidates(model: Any) -> Iterator[Inputs]:
    takes = _takes(model)
    if (mark := _first(model.config, _MARKS)) is not None and "input_ids" in takes:
        for pictures in _pictures(model, takes):
            yield _marked(model, takes, mark, setting(model.config, *_COUNTS, otherwise=1)) | pictures
    if (mark := _first(model.config, _SOUND_MARKS)) is not None and "input_ids" in takes:
        for sound in _sounds(model, takes):
            yield _marked(model, takes, mark) | sound
    yield from _of_few(model, takes)
    with contextlib.suppress(NotOptimizableError):
        yield dict(batches_for(model, model.config)[0].tensors)
    if set(_GRIDS) & takes.keys() and "input_ids" not in takes:
        for pictures in _pictures(model, takes, next(iter(takes))):
            yield pictures
    yield from _by_main_input(model, takes)
    if "input_ids" in takes:
        yield _text(model, takes)
        if "decoder_input_ids" in takes:
            yield _text(model, takes) | {"decoder_input_ids": tokens(model, 4)}


def _takes(model: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(model.forward).parameters)


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    mark = setting(config, *names)
    return mark if isinstance(mark, int) else None


def _text(model: Any, takes: Mapping[str, Any], length: int = LENGTH) -> Inputs:
    ids = {"input_ids": tokens(model, length)}
    return ids | ({"attention_mask": torch.ones(1, length, dtype=torch.long)} if "attention_mask" in takes else {})


def _marked(model: Any, takes: Mapping[str, Any], mark: int, count: int = 1) -> Inputs:
    """Return a text in which `count` tokens stand for an image or a sound."""
    ids = tokens(model, 6)
    ids = torch.cat([ids[:, :2], torch.full((1, count), mark), ids[:, 2:]], 1)
    inputs: Inputs = {"input_ids": ids, "_mark": mark}
    if "attention_mask" in takes:
        inputs["attention_mask"] = torch.ones_like(ids)
    for types in _OF_MARKS:
        if types in takes:
            inputs[types] = (ids == mark).long()
    return inputs


def _with_marks(config: Any, inputs: Inputs, problem: str) -> Inputs | None:
    """Return the same inputs with as many marks as the model says its image has features; None where it does not say."""
    found = _MISMATCH.search(problem)
    if not found or "_mark" not in inputs:
        return None
    mark, before = inputs["_mark"], inputs["input_ids"]
    named, features = int(found[1]), int(found[2])
    now = int((before == mark).sum())
    # Some count numbers, not rows: of the text at first, and of both after that.
    count = features if named == now else features * now // max(named, 1)
    if named == features:
        count = features // max(hidden_size(vars(config.get_text_config())), 1)
    if count == now or not 0 < count < 4096:
        return None
    rest = before[before != mark][None]
    ids = torch.cat([rest[:, :2], torch.full((1, count), mark), rest[:, 2:]], 1)
    changed = dict(inputs, input_ids=ids)
    if "attention_mask" in inputs:
        changed["attention_mask"] = torch.ones_like(ids)
    for types in _OF_MARKS:
        if types in inputs:
            changed[types] = (ids == mark).long()
    return changed


def _pictures(model: Any, takes: Mapping[str, Any], name: str = "pixel_values") -> Iterator[Inputs]:
    """Yield pictures in patches, where the model takes a grid of them, and whole."""
    vision = getattr(model.config, "vision_config", None)
    config = vision if isinstance(vision, PreTrainedConfig) else model.config
    channels = setting(config, "num_channels", "in_channels", "in_chans", otherwise=3)
    patch = setting(config, "patch_size", otherwise=14)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    side = setting(config, "image_size", otherwise=4 * patch)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    if grids := [grid for grid in _GRIDS if grid in takes]:
        frames = setting(config, "temporal_patch_size", otherwise=1)
        for grid in (torch.tensor([[1, 4, 4]]), torch.tensor([[4, 4]])):
            for patches in (
                (16, channels * frames * patch * patch), (16, channels * patch * patch), (16, channels, patch, patch),
                (1, channels, patch, 16 * patch), (1, 16, channels, patch, patch),
            ):  # fmt: skip
                yield {name: noise(*patches), grids[0]: grid}
    if "spatial_shapes" in takes:
        yield {name: noise(1, 16, channels * patch * patch), "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
               "spatial_shapes": torch.tensor([[4, 4]])}  # fmt: skip
    if "high_res_pixel_values" in takes:
        finer = setting(model.config.high_res_vision_config, "image_size", otherwise=64)
        yield {name: noise(1, channels, height, width), "high_res_pixel_values": noise(1, channels, finer, finer)}
    if "pixel_position_ids" in takes:
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]
        yield {name: noise(1, 16, channels * patch * patch), "pixel_position_ids": places}
    if "pixel_attention_mask" in takes and "state" in takes:  # of cameras
        yield {name: noise(1, 1, channels, height, width), "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    sizes = torch.tensor([[height, width]])
    for before in ((1,), (1, 2), (1, 1), (1, 5)):
        plain: Inputs = {name: noise(*before, channels, height, width)}
        if "image_sizes" in takes:
            yield plain | {"image_sizes": sizes}
        yield plain


def _sounds(model: Any, takes: Mapping[str, Any]) -> Iterator[Inputs]:
    bins = setting(model.config, "num_mel_bins", "feature_size", "input_dim", "n_mels", otherwise=80)
    positions = setting(model.config, "max_source_positions", otherwise=32)
    if "input_features" in takes:
        for shape in ((1, bins, 2 * positions), (1, 64, bins), (1, bins, 64)):
            features: Inputs = {"input_features": noise(*shape)}
            for mask in ("feature_attention_mask", "input_features_mask"):
                if mask in takes:
                    yield features | {
                        mask: torch.ones(1, max(shape[1:], key=lambda one: one != bins), dtype=torch.long)
                    }
            yield features
    if "input_values" in takes:
        yield {"input_values": noise(1, 4000)}
        yield {"input_values": noise(1, 1, 4000)}


def _of_few(model: Any, takes: Mapping[str, Any]) -> Iterator[Inputs]:
    """Yield inputs by names that only few take."""
    text = _text(model, takes) if "input_ids" in takes else {}
    if type(model).__name__.endswith("ForMultipleChoice"):
        yield {key: value.expand(2, -1)[None].clone() for key, value in text.items()}
    if "input_features" in takes and _first(model.config, _SOUND_MARKS) is None:
        for shape in _shapes("input_features", model.config):
            yield text | {"input_features": noise(1, *shape[1:])}
    if {"input_features", "input_values"} & takes.keys() and _first(model.config, _SOUND_MARKS) is None:
        decoder = {"decoder_input_ids": tokens(model, 4)} if "decoder_input_ids" in takes else {}
        yield from (text | sound | more for sound in _sounds(model, takes) for more in ({}, decoder))
    if "pixel_position_ids" in takes and "input_ids" not in takes:
        yield next(_pictures(model, takes))
    if "spatial_shapes" in takes:
        yield text | next(_pictures(model, takes))
    if "image_embeds_position_mask" in takes and text:
        places = torch.zeros_like(text["input_ids"])
        places[:, 1:5] = 1
        yield from (text | pictures | {"image_embeds_position_mask": places} for pictures in _pictures(model, takes))
    if "states" in takes and "returns_to_go" in takes:
        yield _moves(model.config)
    if "query_embeds" in takes and "input_ids" not in takes:
        width = setting(model.config, "encoder_hidden_size", otherwise=32)
        yield {
            "query_embeds": noise(1, 4, setting(model.config, "hidden_size")),
            "encoder_hidden_states": noise(1, 6, width),
        }


def _by_main_input(model: Any, takes: Mapping[str, Any]) -> Iterator[Inputs]:
    """Yield what a main input that is no text may look like."""
    config = model.config
    names = model.main_input_name
    name = names if isinstance(names, str) else names[0]
    if name not in takes:  # of a part of a model it says what the whole takes
        name = next(iter(takes), name)
    text = _text(model, takes) if "input_ids" in takes and name != "input_ids" else {}
    decoder = {"decoder_input_ids": tokens(model, 4)} if "decoder_input_ids" in takes else {}
    for shape in _shapes(name, config):
        main = {name: noise(*shape)}
        if name == "flattened_patches":
            main[name][..., :2] = 1  # the row and the column of each
        for more in ({}, decoder, text, text | decoder):
            yield more | main
    if name == "past_values":
        yield _series(config)
        yield {name: noise(2, setting(config, "context_length", otherwise=16), 1).squeeze(-1)}


def _shapes(name: str, config: Any) -> Iterator[tuple[int, ...]]:
    channels = setting(config, "num_channels", "in_channels", "in_chans", otherwise=3)
    if name.startswith("pixel_values"):
        size = setting(config, "image_size", "crop_size", "input_size", otherwise=64)
        side = tuple(size) if isinstance(size, list | tuple) else (size, size)
        frames = setting(config, "num_frames", "frames_per_clip", "max_frames", otherwise=2)
        for height, width in (side, (64, 64), (224, 224)):
            yield (2, channels, height, width)
            yield (2, frames, channels, height, width)
            yield (2, 1, channels, height, width)
    elif name in ("input_features", "spectrogram", "audio_mel", "audio_values"):
        bins = setting(
            config, "num_mel_bins", "feature_size", "input_feat_per_channel", "feature_projection_input_dim", "input_channels",
            "model_in_dim", "audio_channels", otherwise=80,
        )  # fmt: skip
        positions = setting(config, "max_source_positions", otherwise=64)
        yield from ((2, bins, 2 * positions), (2, 128, bins), (2, 1, 64, bins), (2, 1, 1001, bins), (2, 1, 128, bins))
    elif name == "input_values":
        length, bins = setting(config, "max_length", otherwise=64), setting(config, "num_mel_bins", otherwise=16)
        yield from ((2, 4000), (2, 1, 4000), (2, length, bins), (2, 2, 4000), (2, 16000), (1, 1, 16000))
    elif name in ("inputs", "hidden_states", "latents", "inputs_embeds", "noise_embeds", "patch_embeds"):
        width = setting(config, "d_model", "hidden_size", "embed_dim", "latent_dim", otherwise=32)
        yield from ((2, setting(config, "block_size", otherwise=16), width), (2, width, 16))
    elif name == "past_values":
        length = setting(config, "context_length", "prediction_length", otherwise=32)
        width = setting(config, "num_input_channels", otherwise=1)
        yield from ((2, length, width), (2, length))
    elif name == "flattened_patches":
        yield (2, 16, 2 + 3 * 16 * 16)


def _series(config: Any) -> Inputs:
    lags = max(getattr(config, "lags_sequence", None) or [0])
    past = (setting(config, "context_length", otherwise=16)) + lags
    ahead = setting(config, "prediction_length", otherwise=4)
    times = getattr(config, "num_time_features", 0) or 0
    return {
        "past_values": noise(2, past), "past_time_features": noise(2, past, times),
        "past_observed_mask": torch.ones(2, past), "future_values": noise(2, ahead),
        "future_time_features": noise(2, ahead, times),
    }  # fmt: skip


def _moves(config: Any) -> Inputs:
    return {
        "states": noise(1, 5, config.state_dim), "actions": noise(1, 5, config.act_dim), "rewards": noise(1, 5, 1),
        "returns_to_go": noise(1, 5, 1), "timesteps": torch.arange(5)[None], "attention_mask": torch.ones(1, 5),
    }  # fmt: skip
