"""What a model takes: tokens, images, audio, or inputs of its own kind."""

from __future__ import annotations

import inspect
from typing import Any

_IMAGES = {"pixel_values", "pixel_values_videos"}
_AUDIO = {"input_values", "input_features"}
_TEXT = {"input_ids", "decoder_input_ids"}


def main_input(architecture: str | None, *, generates: bool) -> str:
    """Return "tokens", "images", "audio" or "inputs": what one call of an architecture of transformers is made of.

    A model that generates is planned for the tokens that it reads and writes. Of an architecture that transformers does
    not have, nothing is known: its inputs are tokens, as those of most.
    """
    import transformers

    model_class: Any = getattr(transformers, architecture or "", None)
    if generates or not inspect.isclass(model_class) or not hasattr(model_class, "forward"):
        return "tokens"
    names = set(inspect.signature(model_class.forward).parameters)
    kinds = [kind for kind, own in (("tokens", _TEXT), ("images", _IMAGES), ("audio", _AUDIO)) if names & own]
    return kinds[0] if len(kinds) == 1 else "inputs"
