"""Inputs that a model refuses, mended by what it says of them: what is missing, and what is of another size."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_dtype.rescaling.discovery.config_keys import hidden_size

from .drawn import LENGTH, Inputs, noise, setting, tokens

_MISSING = re.compile(r"missing \d+ required positional arguments?: (.*)")
_PRODUCT = re.compile(r"shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)")
_SIZES = re.compile(r"tensor a \((\d+)\) must match the size of tensor b \((\d+)\)")
_MULTIPLE = re.compile(r"multiple of \D*(?:\d\W*\((\d+)\)|(\d+))")
_NORMALIZED = re.compile(r"expected input with shape \[\*, (\d+)\], but got input of size\[([\d, ]+)\]")
_UNPACKED = re.compile(r"not enough values to unpack \(expected \d, got \d\)")
_CHANNELS = re.compile(r"expected input\[([\d, ]+)\] to have (\d+) channels, but got (\d+) channels")


def mended(model: Any, inputs: Inputs, error: Exception) -> Inputs | None:
    """Return the same inputs with what the error says is missing or of another size; None where it does not say."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return _of_another_size(inputs, text)
    if multiple := _MULTIPLE.search(text):
        return _longer(inputs, int(multiple[1] or multiple[2]))
    if _UNPACKED.search(text) and "pixel_values" in inputs and inputs["pixel_values"].dim() == 4:
        return _as_frames(model, inputs)
    if "use_cache" not in inputs and "cache" in _places(error):  # whose layers its config does not name
        return inputs | {"use_cache": False}
    return _with_missing(model, inputs, error, text)


def _as_frames(model: Any, inputs: Inputs) -> Inputs:
    """Return the inputs with several pictures in place of each: those of a film, or of a text."""
    rows, *picture = inputs["pixel_values"].shape
    frames = setting(model.config, "num_frames", "frames_per_clip", otherwise=1)
    changed = inputs | {"pixel_values": noise(rows, frames, *picture)}
    if (mask := "image_attention_mask") in inspect.signature(model.forward).parameters:
        changed[mask] = _known(model, inputs)[mask]()
    return changed


def _with_missing(model: Any, inputs: Inputs, error: Exception, text: str) -> Inputs | None:
    """Return the inputs with what is missing; None where that is not known."""
    if not isinstance(error, TypeError | ValueError | AttributeError):
        return None
    known = _known(model, inputs)
    if missing := _MISSING.search(text):
        names = re.findall(r"'(\w+)'", missing[1])
        made = {name: _mask(inputs, text) if name.endswith("mask") else known.get(name, _nothing)() for name in names}
        is_new = not inputs.keys() & made.keys()
        return inputs | made if is_new and all(one is not None for one in made.values()) else None
    takes = inspect.signature(model.forward).parameters
    for name, make in known.items():
        if name not in inputs and (name in text or (name == "bbox" and "bbox" in takes)):
            return inputs | {name: make()}
    return None


def _places(error: Exception) -> str:
    """Return the names of the files that an error came through."""
    return " ".join(Path(frame.filename).stem for frame in traceback.extract_tb(error.__traceback__))


def _longer(inputs: Inputs, multiple: int) -> Inputs | None:
    """Return the inputs with the longest one of numbers as long as the next multiple."""
    lengths = {
        name: value.shape[-1]
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    name = max(lengths, key=lengths.__getitem__, default=None)
    if name is None or not lengths[name] % multiple:
        return None
    longer = -(-lengths[name] // multiple) * multiple
    masks = {
        key: torch.ones(*value.shape[:-1], longer, dtype=value.dtype)
        for key, value in inputs.items()
        if key.endswith("mask") and value.shape[-1] == lengths[name]
    }
    return inputs | {name: noise(*inputs[name].shape[:-1], longer)} | masks


def _nothing() -> None:
    return None


def _mask(inputs: Inputs, text: str) -> Tensor:
    """Return a mask of all that is shown or heard."""
    frames = max((value.shape for value in inputs.values() if isinstance(value, Tensor)), key=len)
    shape = frames[:2] if "features" in text or "mel" in text else frames[:1] + frames[-1:]
    return torch.ones(*shape, dtype=torch.bool)


def _known(model: Any, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Return what can be made, by names of arguments."""
    config = model.config
    length = inputs["input_ids"].shape[1] if "input_ids" in inputs else LENGTH
    rows = len(next(iter(inputs.values()))) if inputs else 1
    return {
        "input_ids": lambda: tokens(model, LENGTH, rows),
        "qformer_input_ids": lambda: tokens(model, 4),
        "task_inputs": lambda: tokens(model, setting(config, "task_seq_len", otherwise=LENGTH), rows),
        "bbox": lambda: torch.arange(4).expand(rows, length, 4).clone(),
        "input_points": lambda: torch.full((2, 1, 1, 2), 9.0),
        "decoder_input_ids": lambda: tokens(model, 4, rows),
        "decoder_input_values": lambda: noise(1, 6, setting(config, "num_mel_bins", otherwise=80)),
        "speaker_embeddings": lambda: noise(1, setting(config, "speaker_embedding_dim", otherwise=512)),
        "visual_feats": lambda: noise(1, 3, setting(config, "visual_feat_dim", otherwise=2048)),
        "visual_pos": lambda: noise(1, 3, 4).sigmoid(),
        "mm_token_type_ids": lambda: (inputs["input_ids"] == inputs.get("_mark")).long(),
        "prompt_pixel_values": lambda: noise(*inputs["pixel_values"].shape),
        "prompt_masks": lambda: noise(*inputs["pixel_values"].shape),
        "state": lambda: noise(rows, setting(config, "max_state_dim", otherwise=32)),
        "context_hidden_states": lambda: noise(
            rows, 5, hidden_size(vars(config)) * len(setting(config, "target_layer_ids", otherwise=[0]))
        ),
        "input_features": lambda: noise(rows, setting(config, "num_mel_bins", "feature_size", otherwise=80), 64),
        "marks": lambda: torch.tensor([[length - 1]]),
        "num_options": lambda: torch.tensor([[2]]),
        "question_type_ids": lambda: torch.tensor([[0]]),
        "image_attention_mask": lambda: torch.ones(rows, length, 1, dtype=torch.long),
        "merge_sizes": lambda: torch.tensor([1]),
        "target_sizes": lambda: torch.tensor([[4, 4]] * rows, dtype=torch.int32),
    }


def _of_another_size(inputs: Inputs, text: str) -> Inputs | None:
    """Return the inputs with the one of which an error of torch tells in the size that it wants."""
    product, channels = _PRODUCT.search(text), _CHANNELS.search(text)
    sizes, normalized = _SIZES.search(text), _NORMALIZED.search(text)
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        shape = list(value.shape)
        if product and shape[-1] == int(product[1]):
            return inputs | {name: noise(*shape[:-1], int(product[2]))}
        if normalized and shape == [int(size) for size in normalized[2].split(", ")]:
            return inputs | {name: noise(*shape[:-1], int(normalized[1]))}
        if sizes and shape.count(int(sizes[1])) == 1:
            shape[shape.index(int(sizes[1]))] = int(sizes[2])
            return inputs | {name: noise(*shape)}
        if channels and shape == [int(size) for size in channels[1].split(", ")] and int(channels[3]) in shape:
            shape[shape.index(int(channels[3]))] = int(channels[2])
            return inputs | {name: noise(*shape)}
    return None
