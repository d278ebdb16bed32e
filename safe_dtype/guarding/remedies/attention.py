"""Use another implementation of attention: for a kernel that wants another device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible

_NAME = "_attn_implementation_internal"  # in the __dict__ of a config of transformers


@dataclass(frozen=True)
class ChangeAttention:
    """Use another implementation of attention, from the next step on."""

    implementation: str
    way_back: list[Callable[[], None]] = field(default_factory=list, compare=False, repr=False)
    changes_dtype = False

    def __str__(self) -> str:
        return f"{self.implementation} attention"

    def apply(self, incident: Incident) -> int:
        """Switch every attention of the model."""
        model: Any = incident.model
        if not hasattr(model, "set_attn_implementation"):
            raise NotPossible(f"{type(model).__name__} has no choice of attention")
        self.way_back.append(attention_as_it_is(model))
        incident.log.add(self.way_back[-1])
        try:
            model.set_attn_implementation(self.implementation)
        except (ValueError, ImportError) as exc:
            raise NotPossible(str(exc)) from exc
        if model.config._attn_implementation != self.implementation:
            raise NotPossible("transformers kept the old one")
        return 0

    def undo(self, incident: Incident) -> None:  # noqa: ARG002  (the configs are all that it changes)
        """Go back to the former one: it was not the kernel, and every implementation rounds in its own way."""
        while self.way_back:
            self.way_back.pop()()


def attention_as_it_is(model: nn.Module) -> Callable[[], None]:
    """Return what sets every attention back: the parts of a model may have had different ones."""
    configs = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None
    }
    before = [
        (config, config.__dict__[_NAME])
        for config in (*configs.values(), *_sub_configs(configs.values()))
        if _NAME in getattr(config, "__dict__", ())
    ]

    def undo() -> None:
        for config, implementation in before:
            config.__dict__[_NAME] = implementation

    return undo


def leave_flash_attention(model: Any) -> None:
    """Have `model` use another attention where its own has no kernels in float32."""
    now = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    if "flash" in now:
        model.set_attn_implementation("sdpa")


def _sub_configs(configs: Iterable[Any]) -> Iterator[Any]:
    for config in configs:
        inner = [
            sub for name in getattr(config, "sub_configs", ()) if (sub := getattr(config, name, None)) is not None
        ]
        yield from inner
        yield from _sub_configs(inner)


def propose(incident: Incident) -> Iterator[ChangeAttention]:
    """Yield the implementations that need less of a device than the one in use, where a kernel does not fit to it."""
    if incident.failure.kind is not FailureKind.KERNEL_ARCH:
        return
    now = str(getattr(getattr(incident.model, "config", None), "_attn_implementation", None))
    if now == "sdpa":
        yield ChangeAttention("eager")
    elif now not in ("eager", "None"):
        yield from (ChangeAttention("sdpa"), ChangeAttention("eager"))
