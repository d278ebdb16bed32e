"""The models that a pipeline of diffusers holds now. Imports no diffusers."""

from __future__ import annotations

from typing import Any

from torch import nn


def models_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return the models of a pipeline by the names of its parts, those too that a program has registered beside them.

    `pipeline.components` raises where there are more of them, or fewer, than its class names.
    """
    registered = (name for name in pipeline.config if not name.startswith("_"))
    parts = {name: vars(pipeline).get(name) for name in registered}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
