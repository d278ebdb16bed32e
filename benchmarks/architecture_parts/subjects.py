"""Every model class that an Auto class of the installed transformers loads."""

from __future__ import annotations

import itertools
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
    """Return every class of every type once: first those that stand for their types, then a second one of each, ..."""
    by_type: dict[str, dict[str, Subject]] = {}
    for auto in sorted(_auto_classes(), key=_rank):
        for model_type, names in getattr(transformers, auto)._model_mapping._model_mapping.items():
            for name in names if isinstance(names, tuple | list) else [names]:
                by_type.setdefault(model_type, {}).setdefault(name, Subject(model_type, auto, name))
    rounds = itertools.zip_longest(*(by_type[model_type].values() for model_type in sorted(by_type)))
    return [subject for one_of_each in rounds for subject in one_of_each if subject]


def _auto_classes() -> Iterator[str]:
    for name in dir(transformers):
        if name.startswith(("AutoModel", "AutoBackbone")) and hasattr(getattr(transformers, name), "_model_mapping"):
            yield name


def _rank(auto: str) -> tuple[int, str]:
    task = auto.removeprefix("AutoModel").removeprefix("For")
    if task in _FIRST:
        return _FIRST.index(task), auto
    return len(_FIRST) + (2 if not task else 1 if task in _BEHIND or auto == "AutoBackbone" else 0), auto
