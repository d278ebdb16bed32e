"""Which inputs a model of transformers takes, read off its config and the signature of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import NotOptimizableError
from .input_spec import OWN_INPUTS, InputKind, Slot

_LENGTH = 128  # tokens of a text, where the positions allow twice as many
_DECODER_LENGTH = 8
_SIDE = 224  # pixels, where the config names no size
_MATCHED_SIDE = 64  # of images to match: noise is full of keypoints, and each of them attends to all others
_SIDE_STEP = 32  # most pyramids of feature maps need sides that are multiples of it
_SAMPLES = 16_000  # a second of sound
# The parts of a config that may describe images, in the order in which they are read.
_PARTS_WITH_IMAGES = ("vision_config", "backbone_config", "encoder", "keypoint_detector_config")
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Keys of configs whose texts mark the places of images: without a mark, no image is read.
_IMAGE_MARKS = ("image_token_id", "image_token_index")


@dataclass(frozen=True, slots=True)
class Planned:
    """The inputs of a model."""

    slots: tuple[Slot, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)  # of the dimensions that have a name, without the batch
    patch: tuple[int, int] = (1, 1)  # pixels that sides are multiples of: height, width
    notes: tuple[str, ...] = ()  # what was left out, in words


def slots_for(model: torch.nn.Module | type[torch.nn.Module], config: Any, vocabulary: int | None = None) -> Planned:
    """Return the inputs of a model of transformers: its main input, and what goes with it.

    Raises:
        NotOptimizableError: If it takes an input that cannot be made from a config.
    """
    model_class = model if isinstance(model, type) else type(model)
    reader = _Reader(model_class.__name__, config, _parameters(model_class), vocabulary)
    if reader.is_pair and reader.name.endswith("ForSequenceClassification"):
        raise NotOptimizableError(
            f"{reader.name} reads where each text ends, and random ids have no such place", OWN_INPUTS
        )
    text = reader.text()
    notes: tuple[str, ...] = ()
    if text and any(getattr(config, mark, None) is not None for mark in _IMAGE_MARKS):
        images: tuple[Slot, ...] = ()
        notes = ("text alone: its images are marked in the text",) if "pixel_values" in reader.takes else ()
    else:
        images = reader.images()
    slots = (*text, *images, *reader.sound(), *reader.decoder())
    made = {slot.name for slot in slots}
    main = getattr(model_class, "main_input_name", "input_ids")
    needed = {name for name, parameter in reader.takes.items() if parameter.default is parameter.empty}
    mains = {main} if isinstance(main, str) else set(main)  # OneFormer has two
    if missing := sorted((needed | (mains & reader.takes.keys())) - made):
        raise NotOptimizableError(
            f"{model_class.__name__} takes {', '.join(missing)}, which cannot be made from its config", OWN_INPUTS
        )
    if not slots:
        known = "input_ids, pixel_values, input_features or input_values"
        raise NotOptimizableError(f"{model_class.__name__} takes none of {known}", OWN_INPUTS)
    return Planned(slots, reader.sizes, reader.patch, notes)


def _parameters(model_class: type) -> dict[str, inspect.Parameter]:
    forward: Any = model_class.forward  # type: ignore[attr-defined]  # every module has one
    _, *others = inspect.signature(forward).parameters.values()
    return {one.name: one for one in others if one.kind not in _VARIABLE}


@dataclass(slots=True)
class _Reader:
    """Reads the inputs off a config, and collects their sizes in `sizes`."""

    name: str
    config: Any
    takes: Mapping[str, inspect.Parameter]
    vocabulary: int | None
    sizes: dict[str, int] = field(default_factory=dict)
    patch: tuple[int, int] = (1, 1)

    def text(self) -> tuple[Slot, ...]:
        """Return the ids of a text, their mask, types and flags; nothing where it reads no text."""
        if "input_ids" not in self.takes:
            return ()
        config = self.config.get_text_config(encoder=True) if self.is_pair else self.config.get_text_config()
        if not (vocabulary := self._vocabulary(config)):
            return ()
        # Half of the positions: some architectures count from the padding id on, or add tokens of their own.
        self.sizes["length"] = max(1, min(_LENGTH, (positions_of(config) or 2 * _LENGTH) // 2))
        slots = [*self._ids("input_ids", "attention_mask", "length", config, vocabulary)]
        if "token_type_ids" in self.takes and (types := getattr(config, "type_vocab_size", None) or 0) > 1:
            slots.append(Slot("token_type_ids", InputKind.TYPES, ("batch", "length"), torch.int64, high=types - 1))
        if "global_attention_mask" in self.takes:
            slots.append(Slot("global_attention_mask", InputKind.FLAGS, ("batch", "length"), torch.int64))
        return tuple(slots)

    def decoder(self) -> tuple[Slot, ...]:
        """Return the ids and the mask of the decoder of an encoder-decoder; nothing for other models."""
        if "decoder_input_ids" not in self.takes or not self.is_pair:
            return ()
        config = self.config.get_text_config(decoder=True)
        if not (vocabulary := self._vocabulary(config)):
            return ()
        positions = getattr(config, "max_target_positions", None) or positions_of(config) or 2 * _DECODER_LENGTH
        self.sizes["decoder_length"] = max(1, min(_DECODER_LENGTH, positions // 2))
        return self._ids("decoder_input_ids", "decoder_attention_mask", "decoder_length", config, vocabulary)

    def images(self) -> tuple[Slot, ...]:
        """Return the pixels and their mask: of an image, of two to be matched, of the frames of a video."""
        if "pixel_values" not in self.takes:
            return ()
        pairs = self.name.endswith("ForKeypointMatching")
        self.patch = _pair(self._of_images("patch_size")) or (1, 1)
        size = _pair(self._of_images("image_size"))
        for number, side in enumerate(("height", "width")):
            step = self.patch[number] if _SIDE_STEP % self.patch[number] else _SIDE_STEP
            self.sizes[side] = size[number] if size else max(step, (_MATCHED_SIDE if pairs else _SIDE) // step * step)
        channels = self._of_images("num_channels") or 3
        frames = 2 if pairs else getattr(self.config, "num_frames", None)
        several = (int(frames),) if frames else ()
        dims = ("batch", *several, channels, "height", "width")
        slots = [Slot("pixel_values", InputKind.VALUES, dims, torch.float32)]
        if "pixel_mask" in self.takes:
            slots.append(Slot("pixel_mask", InputKind.MASK, ("batch", "height", "width"), torch.int64))
        return tuple(slots)

    def sound(self) -> tuple[Slot, ...]:
        """Return the audio: samples, or a spectrogram; nothing where it takes none."""
        config, shape = self.config, tuple[str | int, ...]()
        bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
        if "input_features" in self.takes and positions:
            per_frame = getattr(config, "input_feat_per_channel", None)  # of Speech2Text, which takes frames first
            shape = ("frames", per_frame) if per_frame else (bins, 2 * positions) if bins else ()
            self.sizes["frames"] = 2 * _LENGTH
        elif "input_values" in self.takes:
            frames, channels = getattr(config, "max_length", None), getattr(config, "audio_channels", None)
            shape = (frames, bins) if bins and frames else (*((channels,) if channels else ()), "samples")
            self.sizes["samples"] = _SAMPLES
        name = "input_features" if "input_features" in self.takes else "input_values"
        return (Slot(name, InputKind.VALUES, ("batch", *shape), torch.float32),) if shape else ()

    @property
    def is_pair(self) -> bool:
        """Whether it is an encoder with a decoder."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    def _ids(self, name: str, mask: str, length: str, config: Any, vocabulary: int) -> tuple[Slot, ...]:
        dims = ("batch", length)
        padding = getattr(config, "pad_token_id", None)
        ids = Slot(
            name, InputKind.IDS, dims, torch.int64, high=vocabulary - 1, avoid=_special_ids((self.config, config)),
            hidden_by=mask, padding=padding if isinstance(padding, int) and 0 <= padding < vocabulary else None,
        )  # fmt: skip
        return (ids, Slot(mask, InputKind.MASK, dims, torch.int64)) if mask in self.takes else (ids,)

    def _vocabulary(self, config: Any) -> int:
        size = self.vocabulary or getattr(config, "vocab_size", None)
        return size if isinstance(size, int) else 0

    def _of_images(self, name: str) -> Any:
        parts = [getattr(self.config, part, None) for part in _PARTS_WITH_IMAGES]
        within = (getattr(part, below, None) for part in parts for below in _PARTS_WITH_IMAGES)  # as in SAM 2
        settings = (getattr(part, name, None) for part in (self.config, *parts, *within))
        return next((setting for setting in settings if setting is not None), None)


def positions_of(config: Any) -> int | None:
    """Return how many positions of a text the config of a text model has; None where it does not say."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next(
        (positions for name in names if isinstance(positions := getattr(config, name, None), int) and positions > 0),
        None,
    )


def _special_ids(configs: Iterable[Any]) -> tuple[int, ...]:
    """Return every id that a config names: these have a meaning, so random batches must not hold them."""
    ids: set[int] = set()
    for config in configs:
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                several = value if isinstance(value, list | tuple) else [value]
                ids |= {one for one in several if isinstance(one, int)}
    return tuple(sorted(ids))


def _pair(size: Any) -> tuple[int, int] | None:
    """Return height and width from one number, from two, or from a mapping with their names."""
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(one, int) for one in size):
        return size[0], size[1]
    return None
