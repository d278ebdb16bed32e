"""Weights of a class that its checkpoint lacks: transformers fills them with random numbers, and only its log says so.

That is what is wanted of a new head. It is not where names do not meet: a class that did not write the files, a model type
that transformers does not know, layers that were renamed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import ref

from torch import nn
from transformers import PreTrainedModel

from ..errors import CheckpointError
from ..models.wrapped_methods import unwrap_methods, wrap_method

# Where transformers knows both sets of names, without what is tied and what a class says may be lacking. The public
# `output_loading_info` tells the same, but code that comes with a checkpoint and goes on with what its own `from_pretrained`
# returned would find a pair there.
_ADJUSTS = "_adjust_missing_and_unexpected_keys"
_MOST_MISSING = 0.5  # of a model's numbers: a head is less
_NAMED = 3
_ADVICE = (
    "check `architectures` and `model_type` in its config.json, and load it with the class that its author names; weights "
    "that are new on purpose have to be trained"
)


@dataclass(frozen=True, slots=True)
class UnmetNames:
    """The names on both sides of a load that the other side has not."""

    model_class: str
    missing: tuple[str, ...]  # of the model
    unexpected: tuple[str, ...]  # in the files
    expected: tuple[str, ...] = ()  # of the missing ones, those that nobody leaves out of files on purpose
    missing_share: float = 0.0  # of the model's numbers
    missing_of_base: float = 0.0  # of those of its base model, without the heads

    @property
    def problem(self) -> str:
        """What is wrong, in words; empty where a part may be new on purpose."""
        in_model, in_files = _by_place(self.missing), _by_place(self.unexpected)
        if places := in_model.keys() & in_files.keys():
            lacking, instead = ({name for place in places for name in names[place]} for names in (in_model, in_files))
            return (
                f"transformers filled weights of {self.model_class} with random numbers, for its files name them otherwise: "
                f"the model has {kinds(sorted(lacking), _NAMED)}, the files have {kinds(sorted(instead), _NAMED)}"
            )
        if self.missing_of_base > _MOST_MISSING:
            return (
                f"transformers filled {self.missing_share:.0%} of {self.model_class} with random numbers, for its files do "
                f"not have them: {kinds(sorted(self.missing), _NAMED)}"
            )
        if self.expected:
            others = f"; they have {kinds(sorted(self.unexpected), _NAMED)} instead" if self.unexpected else ""
            return (
                f"transformers filled weights of {self.model_class} with random numbers, for its files do not have "
                f"them: {', '.join(self.expected[:_NAMED])}{_and_more(len(self.expected) - _NAMED)}{others}"
            )
        return ""


def _by_place(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by each place that they are at: their module, their numbered layer, and the part that stacks of layers are in.

    What they are within their layer is a place as well, whatever stack that is in. The top of a model is none: one head may
    well be new where the files have another.
    """
    places: dict[str, list[str]] = {}
    for name in names:
        module = name.rpartition(".")[0]
        layer = match[0] if (match := re.match(r".*?(?<=\.)\d+(?=\.)", name)) else ""
        stacks = f"{name.partition('.')[0]}.*" if layer.count(".") > 1 else ""
        *numbered, tail = re.split(r"(?<=\.)\d+\.", name)
        within = f"*.{tail}" if numbered and "." in tail else ""
        for place in {module, layer, stacks, within} - {""}:
            places.setdefault(place, []).append(name)
    return places


class _Here(threading.local):
    notes: list[tuple[ref[nn.Module], UnmetNames]] | None = None  # by the load that this thread is in


_here = _Here()


class Loaded:
    """What there is to say of the models that are loaded in a block of `looking_for_random_weights`."""

    def __init__(self) -> None:
        self.notes: list[tuple[ref[nn.Module], UnmetNames]] = []

    def error_of(self, model: nn.Module, source: str) -> CheckpointError | None:
        """Return what is wrong with the weights of `model`; None where nothing is."""
        problem = next((unmet.problem for loaded, unmet in self.notes if loaded() is model), "")
        return CheckpointError(source, problem, _ADVICE) if problem else None


@contextmanager
def looking_for_random_weights() -> Iterator[Loaded]:
    """Note what transformers did not find in the files of the models that this thread loads in the block."""
    loaded = Loaded()
    if not hasattr(PreTrainedModel, _ADJUSTS):  # it is transformers' own affair
        yield loaded
        return
    before, _here.notes = _here.notes, loaded.notes
    wrap_method(PreTrainedModel, _ADJUSTS, _noting, loaded)
    try:
        yield loaded
    finally:
        _here.notes = before
        unwrap_methods(loaded)


def _noting(original: Callable[..., None]) -> Callable[..., None]:
    def adjust(self: Any, loading_info: Any) -> None:
        original(self, loading_info)  # which changes it in place
        if _here.notes is not None and loading_info.missing_keys:
            unmet = unmet_names(self, frozenset(loading_info.missing_keys), loading_info.unexpected_keys)
            _here.notes.append((ref(self), unmet))

    return adjust


def unmet_names(model: PreTrainedModel, missing: frozenset[str], unexpected: Iterable[str]) -> UnmetNames:
    """Return what `model` and its files do not have in common.

    Args:
        model: As it was loaded.
        missing: Names that it has and its files have not.
        unexpected: Names that its files have and it has not.
    """
    incomplete = {name[: end.start()] for name in missing for end in re.finditer(r"\.", name)}
    modules = {name for name, _ in model.named_modules()}
    others = (
        # Beside weights that are all there it is a buffer of an older version, which is made anew.
        name
        for name in unexpected
        if (module := name.rpartition(".")[0]) not in modules or module in incomplete
    )
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    return UnmetNames(
        type(model).__name__,
        tuple(missing),
        tuple(others),
        expected=tuple(sorted(_expected(model, missing, prefix))),
        missing_share=_share(model, missing),
        missing_of_base=_share(model, missing, prefix),
    )


def _expected(model: PreTrainedModel, missing: frozenset[str], prefix: str) -> set[str]:
    """Return the missing weights that its files must have: those of layers beside others, embeddings, and heads.

    Heads are those of the class that wrote the files. What a base model has beside its layers may well be lacking: a pooler
    that nobody trained, a token for masks.
    """
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    present = {_kind(name) for name in weights - missing}
    lacking = weights & missing
    expected = {name for name in lacking if (kind := _kind(name)) != name and kind in present}
    try:
        embeddings: Any = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    if isinstance(embeddings, nn.Module):
        of_embeddings = {id(one) for one in embeddings.parameters()}
        named = model.named_parameters(remove_duplicate=False)
        expected |= {name for name, one in named if name in missing and id(one) in of_embeddings}
    if prefix and type(model).__name__ in (model.config.architectures or ()):
        expected |= {name for name in lacking if not name.startswith(prefix)}
    return expected


def _share(model: nn.Module, names: frozenset[str], prefix: str = "") -> float:
    """Return the share of a model's numbers that these weights are, what is tied counted once: of those named with `prefix`."""
    sizes: dict[int, int] = {}
    chosen: dict[int, int] = {}
    for name, tensor in chain(model.named_parameters(remove_duplicate=False), model.named_buffers()):
        if not name.startswith(prefix):
            continue
        sizes[id(tensor)] = tensor.numel()
        if name in names:
            chosen[id(tensor)] = tensor.numel()
    return sum(chosen.values()) / max(sum(sizes.values()), 1)


def kinds(names: Iterable[str], most: int) -> str:
    """Return the first kinds of these names, layers counted as one."""
    patterns = tuple(dict.fromkeys(_kind(name) for name in names))
    return ", ".join(patterns[:most]) + (f" and {len(patterns) - most} more kinds" if len(patterns) > most else "")


def _kind(name: str) -> str:
    """Return a name without the number of its layer."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
