"""The weights that transformers keeps in float32 when it loads a model in 16 bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def kept_in_float32(architecture: str | None, config: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patterns kept under float16 alone, and those kept under bfloat16 too, of an architecture.

    Those of its own class, and those of the models inside, by the parts of its config: transformers gathers both when it
    builds a model, and compares each with all names. Models that only the repository's own code knows are not among them.
    """
    sometimes: set[str] = set()
    always: set[str] = set()
    if "_class_name" in config:  # of diffusers, which keeps them in both
        return (), tuple(sorted(_of_diffusers(architecture)))
    for model_class in _classes(architecture, config):
        sometimes.update(getattr(model_class, "_keep_in_fp32_modules", None) or ())
        always.update(getattr(model_class, "_keep_in_fp32_modules_strict", None) or ())
    return tuple(sorted(sometimes)), tuple(sorted(always))


def _of_diffusers(architecture: str | None) -> tuple[str, ...]:
    try:
        import diffusers
    except ImportError:  # the checkpoint is looked at, and loaded elsewhere
        return ()
    names: Any = getattr(getattr(diffusers, architecture or "", None), "_keep_in_fp32_modules", None) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _classes(architecture: str | None, config: Mapping[str, Any]) -> Iterator[object]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    yield getattr(transformers, architecture or "", None)
    for model_type in _model_types(config):
        names = MODEL_MAPPING_NAMES.get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            yield getattr(transformers, name, None)


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(model_type := config.get("model_type"), str):
        yield model_type
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _model_types(part)
