"""Memory that is a view of a file: give its pages back to the system, which reads them again where they are needed.

transformers maps safetensors files, so a weight that is loaded in its saved dtype lies in the file's own pages. After a
copy of it was made in another layout, the original needs no memory: it stays valid, and whoever touches it reads it
from the file (from the system's cache of it, as a rule).

A page that was written to is the process's own, and what was written would be lost. Linux tells of each page whether
it still is the file's (`/proc/self/pagemap`); where it does not tell, nothing is given back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_DONTNEED = 4  # MADV_DONTNEED of Linux
_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ..(.)(.) \S+ \S+ (\d+)", re.MULTILINE)
# The three highest bits that pagemap has of a page (Documentation/admin-guide/mm/pagemap.rst).
_HIGHEST = 61
_OF_FILE, _SWAPPED, _PRESENT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Mapping:
    """One private mapping of a file into this process, by addresses."""

    start: int
    stop: int

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies in it, whole."""
        start = tensor.data_ptr()
        return self.start <= start and start + tensor.nbytes <= self.stop


def file_mappings() -> tuple[Mapping, ...]:
    """Return the private mappings of files into this process; none where the system is not Linux."""
    if not sys.platform.startswith("linux"):
        return ()
    try:
        text = Path("/proc/self/maps").read_text()
    except OSError:
        return ()
    lines = (line.groups() for line in _LINE.finditer(text))
    return tuple(Mapping(int(a, 16), int(b, 16)) for a, b, _, kind, inode in lines if kind == "p" and inode != "0")


def in_files(tensors: Iterable[Tensor], mappings: Iterable[Mapping]) -> Iterator[Tensor]:
    """Yield those of `tensors` that are views of files, none of whose pages was written to in memory."""
    mappings = tuple(mappings)
    return (one for one in tensors if any(each.holds(one) for each in mappings) and not is_written(one))


def is_written(tensor: Tensor) -> bool:
    """Whether a page of a view of a file was written to since it was mapped, or the system does not tell.

    Takes 20 us for 1 MB. A page that nobody has touched counts as the file's.
    """
    first, last = _pages(tensor)
    try:
        flags = os.pread(_pagemap(), 8 * (last - first), 8 * first)
    except OSError:
        return True
    if len(flags) != 8 * (last - first):
        return True
    states = torch.frombuffer(bytearray(flags), dtype=torch.int64) >> _HIGHEST & 7
    return bool(((states & (_PRESENT | _SWAPPED) != 0) & (states & _OF_FILE == 0)).any())


def is_written_midway(tensor: Tensor) -> bool:
    """Ask `is_written` of the page in its middle: 1 us, and enough to notice what writes to all of a tensor."""
    page = (tensor.data_ptr() + tensor.nbytes // 2) // mmap.PAGESIZE
    try:
        flags = int.from_bytes(os.pread(_pagemap(), 8, 8 * page), sys.byteorder) >> _HIGHEST
    except OSError:
        return True
    return flags >= _SWAPPED and not flags & _OF_FILE


def give_back(tensor: Tensor, mappings: Iterable[Mapping] | None = None) -> int:
    """Give the pages of a view of a file back; return how many bytes that are, 0 where it is none or was written to.

    Nobody may write to it at the same time.

    Args:
        tensor: What is not needed in memory now.
        mappings: What `file_mappings` returned before, which takes 2 ms; None asks again.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop <= start or not list(in_files([tensor], file_mappings() if mappings is None else mappings)):
        return 0
    done = ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONTNEED)
    return stop - start if done == 0 else 0


def _pages(tensor: Tensor) -> tuple[int, int]:
    """Return the numbers of its first page, and of the first one after it."""
    return tensor.data_ptr() // mmap.PAGESIZE, -(-(tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE)


@cache
def _pagemap() -> int:
    return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)


if hasattr(os, "register_at_fork"):  # what is open tells of the process that opened it
    os.register_at_fork(after_in_child=_pagemap.cache_clear)
