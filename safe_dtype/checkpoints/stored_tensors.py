"""The tensors of marked files, read one at a time."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

from ..errors import CheckpointError, CorruptCheckpointError
from ..facts import TensorFacts
from .audit.pieces import Span, spans_of
from .pickled import table_of
from .weight_files import FileMark, WeightFiles

if TYPE_CHECKING:
    from torch import Tensor


_FAULTS = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class StoredTensors:
    """What marked files hold. The files stay open, so that nothing else is read than what was checked; close it.

    A file is read, not mapped: one that is cut short meanwhile is an error and no signal that ends the process.
    """

    def __init__(self, files: WeightFiles) -> None:
        """Open the files.

        Raises:
            CheckpointError: If a file is not the marked one any more, or cannot be read.
        """
        if files.problem:
            raise CheckpointError(files.source, files.problem)
        if sys.byteorder != "little":
            raise CheckpointError(files.source, "its files are little-endian, and this machine is not")
        self._source = files.source
        self._spans: dict[str, tuple[Span, IO[bytes], FileMark]] = {}
        self._pickled: dict[str, tuple[Tensor, FileMark]] = {}
        self._open = ExitStack()
        try:
            for mark in files.marks:
                self._add(mark, files.file_format)
        except (*_FAULTS, pickle.UnpicklingError) as exc:
            self.close()
            if isinstance(exc, CheckpointError):
                raise
            raise CheckpointError(files.source, f"its files cannot be read ({exc})") from exc

    @property
    def tensors(self) -> dict[str, TensorFacts]:
        """What there is, by name."""
        pickled = {
            name: TensorFacts(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), mark.path.name)
            for name, (tensor, mark) in self._pickled.items()
        }
        return {name: span.tensor for name, (span, _, _) in self._spans.items()} | pickled

    def read(self, name: str) -> Tensor:
        """Return one tensor, in memory of its own.

        Raises:
            KeyError: If there is none of that name.
            CheckpointError: If its file was written to since it was marked, or cannot be read.
        """
        if name in self._pickled:
            tensor, mark = self._pickled[name]
            self._check(mark, mark.path.stat())
            return tensor.clone()
        span, file, mark = self._spans[name]
        try:
            return self._read(span, file, mark)
        except OSError as exc:
            if isinstance(exc, CheckpointError):
                raise
            raise CheckpointError(self._source, f"{mark.path.name} cannot be read ({exc})") from exc

    def close(self) -> None:
        """Close the files."""
        self._open.close()
        self._spans, self._pickled = {}, {}

    def _add(self, mark: FileMark, file_format: str) -> None:
        self._check(mark, mark.path.stat())  # before it is opened: that of a pipe would wait
        if file_format == "safetensors":
            file = self._open.enter_context(mark.path.open("rb", buffering=0))
            spans = spans_of(mark.path)
            self._check(mark, os.fstat(file.fileno()))
            self._check(mark, mark.path.stat())  # whose header was read
            self._spans.update((span.tensor.name, (span, file, mark)) for span in spans)
            return
        self._pickled.update((name, (tensor, mark)) for name, tensor in self._unpickled(mark).items())

    def _unpickled(self, mark: FileMark) -> dict[str, Any]:
        import torch

        if not zipfile.is_zipfile(mark.path):
            raise CheckpointError(self._source, f"{mark.path.name} is of an old format that is only read as a whole")
        loaded = torch.load(mark.path, map_location="cpu", weights_only=True, mmap=True)
        return table_of(loaded)

    def _check(self, mark: FileMark, status: os.stat_result) -> None:
        if not mark.is_of(status):
            raise CheckpointError(self._source, f"{mark.path} has changed since the model was loaded")

    def _read(self, span: Span, file: IO[bytes], mark: FileMark) -> Tensor:
        import torch

        numbers = torch.empty(span.size, dtype=torch.uint8)
        buffer: memoryview = numbers.numpy().data
        file.seek(span.start)
        filled = 0
        while filled < span.size:
            count = file.readinto(buffer[filled:])  # type: ignore[attr-defined]
            if not count:
                raise CorruptCheckpointError(self._source, f"{mark.path.name} ends early")
            filled += count
        self._check(mark, os.fstat(file.fileno()))
        return numbers.view(getattr(torch, span.tensor.dtype)).view(span.tensor.shape)
