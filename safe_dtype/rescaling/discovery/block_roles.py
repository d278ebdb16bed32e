"""What kind of block is this, and what plays which role in it: the same in a tiny twin and in the real model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from ...facts import Part
from ..folding.scaled_numbers import numbers_of

_NO_SETTINGS = ("training", "gradient_checkpointing")  # attributes of modules that change nothing that is computed


@dataclass(frozen=True, slots=True)
class BlockKind:
    """What two blocks share that compute the same."""

    name: str  # of the class
    structure: frozenset[tuple[str, str]]  # roles of modules with their class, of parameters with their dimensions
    settings: frozenset[tuple[str, str]]  # truth values and texts that the modules keep: `layer_type`, `is_sliding`


class Roles:
    """Everything in a module that can be moved, by role.

    A role is a name with a star for the place in a list (or a dictionary) of modules that are alike: all the experts
    of a layer have one role, whatever their number. Names are relative to the module.
    """

    def __init__(self, module: nn.Module, without: frozenset[str] = frozenset()) -> None:
        """Look at `module`, but not into those of its modules that `without` names."""
        self._module = module
        self._without = without
        self._alike: dict[int, bool] = {}

    @cached_property
    def members(self) -> Mapping[tuple[Part, str], tuple[str, ...]]:
        """The names that play each role."""
        by_role: dict[tuple[Part, str], list[str]] = {}
        for part, name in self._everything():
            by_role.setdefault((part, self.role_of(name)), []).append(name)
        return {key: tuple(names) for key, names in by_role.items()}

    @cached_property
    def kind(self) -> BlockKind:
        """The kind of block that this module is."""
        structure: set[tuple[str, str]] = set()
        settings: set[tuple[str, str]] = set()
        for path, module in self._modules():
            role = self.role_of(path)
            structure.add((role, type(module).__name__))
            structure |= {(f"{role}.{name}", str(one.dim())) for name, one in module.named_parameters(recurse=False)}
            settings |= {
                (f"{role}.{name}", str(value))
                for name, value in vars(module).items()
                if isinstance(value, (bool, str)) and not name.startswith("_") and name not in _NO_SETTINGS
            }
        return BlockKind(type(self._module).__qualname__, frozenset(structure), frozenset(settings))

    def role_of(self, name: str) -> str:
        """Return the role of a module, a parameter or an attribute."""
        module: nn.Module | None = self._module
        parts = []
        for part in name.split("."):
            several = isinstance(module, (nn.ModuleList, nn.ModuleDict)) and self._are_alike(module)
            parts.append("*" if several else part)
            module = getattr(module, "_modules", {}).get(part) if module is not None else None
        return ".".join(parts)

    def _everything(self) -> Iterator[tuple[Part, str]]:
        for path, module in self._modules():
            start = f"{path}." if path else ""
            if path:
                yield Part.INPUT, path
                yield Part.OUTPUT, path
            for name, _ in module.named_parameters(recurse=False):
                yield Part.WEIGHT, f"{start}{name}"
            for name in numbers_of(module):
                yield Part.NUMBER, f"{start}{name}"

    def _modules(self, module: nn.Module | None = None, path: str = "") -> Iterator[tuple[str, nn.Module]]:
        module = self._module if module is None else module
        yield path, module
        for name, child in module.named_children():
            inside = f"{path}.{name}" if path else name
            if inside not in self._without:
                yield from self._modules(child, inside)

    def _are_alike(self, modules: nn.Module) -> bool:
        if id(modules) not in self._alike:
            self._alike[id(modules)] = len({_layout(one) for one in modules.children()}) == 1
        return self._alike[id(modules)]


def _layout(module: nn.Module) -> tuple[str, tuple[tuple[str, int], ...]]:
    return type(module).__qualname__, tuple((name, one.dim()) for name, one in module.named_parameters())
