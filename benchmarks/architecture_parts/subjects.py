"""Every model class that an Auto class of the installed transformers loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import transformers

# Of several classes of one type the first that is listed here stands for it: what speaks before what classifies, and a
# model without a head last.
_FIRST = (
    "CausalLM", "Seq2SeqLM", "ImageTextToText", "SpeechSeq2Seq", "MaskedLM", "ObjectDetection", "SemanticSegmentation",
    "ImageClassification", "CTC",
)  # fmt: skip
_BEHIND = ("MultimodalLM", "PreTraining", "TextEncoding", "ImageFeatures")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model class: the type of its config, and the Auto class that loads it."""

    model_type: str
    auto: str  # "AutoModelForCausalLM"
    model_class: str  # "LlamaForCausalLM"


def every_subject() -> list[Subject]:
    """Return every class once, by type; of a type that one first which stands for it."""
    by_type: dict[str, dict[str, Subject]] = {}
    for auto in sorted(_auto_classes(), key=_rank):
        for model_type, names in getattr(transformers, auto)._model_mapping._model_mapping.items():
            for name in names if isinstance(names, tuple | list) else [names]:
                by_type.setdefault(model_type, {}).setdefault(name, Subject(model_type, auto, name))
    return [subject for model_type in sorted(by_type) for subject in by_type[model_type].values()]


def by_type(subjects: list[Subject]) -> list[tuple[Subject, ...]]:
    """Return the classes of each type, the one first that stands for it; types with the same first class are one."""
    types: dict[str, list[Subject]] = {}
    for subject in subjects:
        types.setdefault(subject.model_type, []).append(subject)
    by_class: dict[str, tuple[Subject, ...]] = {}
    for classes in sorted(types.values(), key=lambda classes: _is_namesake(classes[0]), reverse=True):
        by_class.setdefault(classes[0].model_class, tuple(classes))
    return sorted(by_class.values(), key=lambda classes: classes[0].model_type)


def _is_namesake(subject: Subject) -> bool:
    plain = subject.model_type.replace("_", "").replace("-", "")
    return subject.model_class.lower().startswith(plain)


def _auto_classes() -> Iterator[str]:
    for name in dir(transformers):
        if name.startswith(("AutoModel", "AutoBackbone")) and hasattr(getattr(transformers, name), "_model_mapping"):
            yield name


def _rank(auto: str) -> tuple[int, str]:
    task = auto.removeprefix("AutoModel").removeprefix("For")
    if task in _FIRST:
        return _FIRST.index(task), auto
    return len(_FIRST) + (2 if not task else 1 if task in _BEHIND or auto == "AutoBackbone" else 0), auto
