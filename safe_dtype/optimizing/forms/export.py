"""A program of torch.export, in `model.pt2`. Only the version of torch that wrote it reads it, and reading runs code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..graphs.graph_breaks import reason_of
from ..graphs.program import program_of
from ..nouns.form import BuildRequest, FileKind, Form, GraphNeed, Run

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.pt2"


def build(request: BuildRequest) -> Run:
    """Export, save, and return the program that was saved."""
    program = program_of(request.model, request.inputs, request.dynamic)
    torch.export.save(program, str(request.folder / FILE))
    return _runs(program)


def load(folder: Path) -> Run:
    """Load `model.pt2`. Trust the folder first: torch.export.load unpickles.

    Raises:
        RuntimeError: With the reason that torch logs, and leaves out of what it raises.
    """
    with _logged_errors() as errors:
        try:
            return _runs(torch.export.load(str(folder / FILE)))
        except RuntimeError as exc:
            if not errors:
                raise
            # A sentence: what follows is the whole node with its stack.
            raise RuntimeError(reason_of(_first_cause(errors[0])).partition(". ")[0]) from exc


@contextmanager
def _logged_errors() -> Iterator[list[BaseException]]:
    """Collect the exceptions that torch.export logs meanwhile."""
    errors: list[BaseException] = []
    collector = _Collector(errors)
    log = logging.getLogger("torch.export")
    log.addHandler(collector)
    try:
        yield errors
    finally:
        log.removeHandler(collector)


class _Collector(logging.Handler):
    """Keeps the exceptions of the records that it sees."""

    def __init__(self, errors: list[BaseException]) -> None:
        super().__init__()
        self.errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception of a record."""
        if record.exc_info and record.exc_info[1] is not None:
            self.errors.append(record.exc_info[1])


def _first_cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _runs(program: ExportedProgram) -> Run:
    module = program.module()
    return lambda **inputs: dict(module(**inputs))


FORM = Form(
    name="export",
    rank=10,
    about="a program of torch.export, for this version of torch",
    build=build,
    load=load,
    files=(FileKind(".pt2", "a program of torch.export, which is unpickled", mark=r"models/[^/]+\.json"),),
    graph=GraphNeed.OWN,
    of_one_torch=True,
)
