"""The blocks of a model, told by how its modules are nested: they hand the hidden state on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def block_names(model: nn.Module) -> Iterator[str]:
    """Yield the names of the modules in the outermost module lists, those without matrices left out."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name in lists:
        if any(name.startswith(f"{other}.") for other in lists if other != name):
            continue
        for place, block in model.get_submodule(name).named_children():
            if any(one.dim() > 1 for one in block.parameters()) and any(True for _ in block.children()):
                yield f"{name}.{place}"
