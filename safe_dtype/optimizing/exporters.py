"""Other tools that make a form's files: integrations register them by the name that `--via` takes. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from ..errors import EnvironmentNotFitError
from .nouns.job import Job
from .nouns.record import FormAttempt


class Exporter(Protocol):
    """What the module of an integration offers. `via` is the name under which it is registered."""

    FORM: str  # the form whose files the tool makes

    def environment(self, via: str, *, progress: Callable[[str], None]) -> Path:
        """Return where the tool is installed; install it where it is not.

        Raises:
            EnvironmentNotFitError: If it cannot be installed on this machine.
        """
        ...

    def attempt_via(
        self, job: Job, *, via: str, task: str, root: Path, seconds: float, progress: Callable[[str], None]
    ) -> FormAttempt:
        """Let the tool make the file of the job's form, and verify it as `run_attempt` verifies one of our own."""
        ...


_MODULES: dict[str, str] = {}  # by name; a module is imported when it is asked for


def register_exporter(via: str, module: str) -> None:
    """Let `via` name the tool that `module`, an importable name, wraps as an `Exporter`."""
    _MODULES[via] = module


def exporter_names() -> tuple[str, ...]:
    """Return the names of all exporters that are registered."""
    return tuple(_MODULES)


def exporter_named(via: str) -> Exporter:
    """Return the exporter that is registered under `via`.

    Raises:
        EnvironmentNotFitError: If none is.
    """
    if via not in _MODULES:
        advice = f"--via takes {', '.join(_MODULES)}" if _MODULES else "import safe_dtype.integrations first"
        raise EnvironmentNotFitError(f"a way to export that is called {via!r}", advice)
    return cast(Exporter, import_module(_MODULES[via]))
