"""Call back when a module has been imported.

`startup` reads this file by its path, in every Python it starts with: it imports nothing that takes time.
"""

from __future__ import annotations

import sys
from _thread import get_ident  # threading.get_ident, without the 5 ms that threading, typing and their like take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

MODELS, CONFIGS = "transformers.modeling_utils", "transformers.models.auto.configuration_auto"  # what is patched
BATCHES = "accelerate.utils.memory"  # as well
# Where it is decided in which precision a program trains.
PRECISION, ARGUMENTS = "accelerate.state", "transformers.training_args"
ACCELERATOR, TRAINER = "accelerate.accelerator", "transformers.trainer"  # what trains
PARTS, PIPELINES = (
    "diffusers.models.modeling_utils",
    "diffusers.pipelines.pipeline_utils",
)  # what loads those of diffusers
PATCHED = (MODELS, CONFIGS, BATCHES, PRECISION, ARGUMENTS, ACCELERATOR, TRAINER, PARTS, PIPELINES)
STARTUP = "safe_dtype startup"  # marks the hook that a process begins with under `safe-dtype run`


class ImportHook:
    """A finder that leaves one module to the other finders, and calls `then` with it once it is imported."""

    def __init__(self, module: str, then: Callable[[Any], object], mark: str = "") -> None:
        self.module, self.then, self.mark = module, then, mark
        self._asking: set[int] = set()  # threads: another such hook asks everybody in its turn, and us among them

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """Return what the other finders find, with a loader that calls back; None for every other module."""
        if name != self.module or get_ident() in self._asking:
            return None
        self._asking.add(get_ident())
        try:
            specs = (one.find_spec(name, path, target) for one in sys.meta_path if hasattr(one, "find_spec"))
            spec = next((one for one in specs if one is not None), None)
        finally:
            self._asking.discard(get_ident())
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingBack(spec.loader, self.then)  # type: ignore[assignment]  # a loader need be no Loader
        return spec


class _CallingBack:
    """A loader that lets another load, leaves no trace in the module, and then calls back."""

    def __init__(self, loader: Any, then: Callable[[Any], object]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then(module)


def remove_marked(mark: str) -> None:
    """Take away the hooks that carry `mark`, whoever put them in."""
    sys.meta_path[:] = [one for one in sys.meta_path if getattr(one, "mark", None) != mark]
