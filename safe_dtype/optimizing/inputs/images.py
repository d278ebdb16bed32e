"""Image files as the tensors that a model's image processor makes of them, with that processor or without it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import EnvironmentNotFitError, NotOptimizableError

SUFFIXES = (".png", ".jpg", ".jpeg")
_TENSORS = "give the pixels as tensors, in a safetensors file"
_RESAMPLE = 2  # Pillow's number for bilinear, which most processors take where the file does not say


class Pictures:
    """The image processor of a model folder: transformers' own where it loads, otherwise its settings applied here."""

    def __init__(self, model_folder: Path) -> None:
        """Load it.

        Raises:
            EnvironmentNotFitError: If Pillow is not installed.
            NotOptimizableError: If the folder does not say how images are prepared.
        """
        try:
            import PIL.Image
        except ImportError as exc:
            raise EnvironmentNotFitError("Pillow, which reads images", f"`pip install pillow`, or {_TENSORS}") from exc
        self._open = PIL.Image.open
        self._errors = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)  # what Pillow raises
        self._settings = _settings(model_folder)
        self._processor, problem = _processor(model_folder)
        self.about = f"by {'the image processor' if self._processor else 'the settings'} of the model"
        if problem:
            self.about += f", without its image processor ({problem})"

    def tensors(self, files: Sequence[Path]) -> dict[str, Tensor]:
        """Return the files as one batch: `pixel_values` (batch, channels, height, width), and a mask where the model has one.

        Raises:
            NotOptimizableError: If a file is no image.
        """
        images = [self._read(file) for file in files]
        if self._processor is None:
            return {"pixel_values": torch.stack([_prepared(image, self._settings) for image in images])}
        prepared = self._processor(images=images, return_tensors="pt")
        return {name: value for name, value in prepared.items() if isinstance(value, Tensor)}

    def _read(self, file: Path) -> Any:
        try:
            with self._open(file) as image:
                return image.convert("RGB")
        except self._errors as exc:
            raise NotOptimizableError(
                f"{file} is no image that Pillow can read ({exc})", "move it out of the folder"
            ) from exc


def _settings(folder: Path) -> Mapping[str, Any]:
    for name, key in (("preprocessor_config.json", ""), ("processor_config.json", "image_processor")):
        path = folder / name
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as exc:
            raise NotOptimizableError(f"{path} cannot be read ({exc})", _TENSORS) from exc
        settings = settings.get(key, {}) if key else settings
        if isinstance(settings, Mapping) and settings:
            return settings
    raise NotOptimizableError(f"{folder} has no preprocessor_config.json, so images cannot be prepared", _TENSORS)


def _processor(folder: Path) -> tuple[Any, str]:
    """Return transformers' image processor, or None and why there is none."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder), ""
    except (ImportError, OSError, ValueError) as exc:  # torchvision is missing, or no such class is known
        return None, " ".join(str(exc).split())[:100]


def _prepared(image: Any, settings: Mapping[str, Any]) -> Tensor:
    """Return one image as (3, height, width): resized, cropped, rescaled and normalized, as the settings say."""
    size = settings.get("size")
    if size and settings.get("do_resize", True):
        image = _resized(image, size, settings)
    if settings.get("do_center_crop", False):
        image = _cropped(image, _height_and_width(settings.get("crop_size", size)))
    pixels = np.asarray(image, dtype=np.float32)
    if settings.get("do_rescale", True):
        pixels = pixels * np.float32(settings.get("rescale_factor", 1 / 255))
    mean, deviation = settings.get("image_mean"), settings.get("image_std")
    if mean and deviation and settings.get("do_normalize", True):
        pixels = (pixels - np.float32(mean)) / np.float32(deviation)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _resized(image: Any, size: Any, settings: Mapping[str, Any]) -> Any:
    resample = settings.get("resample", _RESAMPLE)
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if isinstance(size, int) and not settings.get("do_center_crop", False):
        shortest = None  # one number means both sides, unless a crop follows
    if shortest is None:
        height, width = _height_and_width(size)
        return image.resize((width, height), resample)
    smaller = min(image.size)
    width, height = (int(shortest * side / smaller) for side in image.size)
    image = image.resize((width, height), resample)
    # Images of one batch have one shape.
    return image if settings.get("do_center_crop", False) else _cropped(image, (shortest, shortest))


def _cropped(image: Any, size: tuple[int, int]) -> Any:
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))  # what is outside of the image is black


def _height_and_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
        return size["height"], size["width"]
    raise NotOptimizableError(f"its preprocessor_config.json gives a size of {size}, which is not supported", _TENSORS)
