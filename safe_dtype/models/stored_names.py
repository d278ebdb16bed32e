"""Under which names files hold the parameters of a model: transformers renames, splits and merges what it loads."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)

# What PEFT puts between the name of a module and that of its weight.
_WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.)")

# What transformers' conversions raise where they meet another version of themselves, or tensors that do not fit.
FAULTS = (
    ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What one parameter is made from: the tensor of one name, or several that a converter of transformers joins."""

    names: tuple[str, ...]
    conversion: Conversion | None = None
    target: str = ""  # the parameter, by the name that the converter gives it


@dataclass(eq=False)
class Conversion:
    """A converter of transformers for one group of tensors, by the first parameter that it makes."""

    converter: Any
    first: str
    patterns: dict[str, str] = field(default_factory=dict)  # of each tensor, which pattern of the converter it matches

    def convert(self, model: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return the parameters that are made, by name; a list of one tensor counts as that tensor."""
        converter = copy.deepcopy(self.converter)
        for name, pattern in self.patterns.items():
            converter.add_tensor(self.first, name, pattern, lambda name=name: read(name))
        made = converter.convert(self.first, model=model, config=getattr(model, "config", None))
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def plain_name(name: str) -> str:
    """Return the name that a parameter had before PEFT wrapped its module."""
    return _WRAPPED.sub("", name)


def sources_of(
    model: nn.Module, stored: Iterable[str], key_mapping: Mapping[str, str] | None = None
) -> dict[str, list[Source]]:
    """Return what each parameter and buffer of `model` may be made from, the likeliest first.

    Args:
        model: As it is now; the names are those that it had before adapters wrapped its modules.
        stored: The names in the files.
        key_mapping: The argument of `from_pretrained`.
    """
    stored = list(stored)
    own = {plain_name(name): tensor for name, tensor in _named_tensors(model)}
    sources: dict[str, list[Source]] = {name: [] for name in own}
    try:
        _add_converted(sources, model, own, stored, key_mapping)
    except FAULTS as exc:
        logger.debug("%s: how transformers renames its weights is not known (%r)", type(model).__name__, exc)
    prefix = f"{getattr(model, 'base_model_prefix', '') or 'model'}."
    in_files = set(stored)
    for name, candidates in sources.items():
        if not candidates:
            keys = dict.fromkeys((name, prefix + name, name.removeprefix(prefix)))
            candidates += [Source((key,)) for key in keys if key in in_files]
    _share_among_ties(sources, model)
    return sources


def _named_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _add_converted(
    sources: dict[str, list[Source]],
    model: nn.Module,
    own: Mapping[str, Tensor],
    stored: list[str],
    key_mapping: Mapping[str, str] | None,
) -> None:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model, key_mapping, None)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    conversions: dict[str, Conversion] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, dict(own))
        if name not in own:
            continue
        if pattern is None:
            sources[name].append(Source((key,)))
        else:
            conversions.setdefault(name, Conversion(by_pattern[pattern], name)).patterns[key] = pattern
    for first, conversion in conversions.items():
        targets = conversion.converter.target_patterns
        for target in targets:
            name = first.replace(targets[0], target)
            if name in sources:
                sources[name].append(Source(tuple(conversion.patterns), conversion, name))


def _share_among_ties(sources: dict[str, list[Source]], model: nn.Module) -> None:
    """Give tied parameters each other's sources: files hold such a weight once."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(plain_name(name))
    for tied in names.values():
        if len(tied) > 1:
            shared = [source for name in tied for source in sources[name]]
            for name in tied:
                sources[name] += [source for source in shared if source not in sources[name]]
