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
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

if sys.platform.startswith("linux"):
    import fcntl

_DONTNEED = 4  # MADV_DONTNEED of Linux
_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ...(.) \S+ \S+ (\d+) *(.*)$", re.MULTILINE)
# Of what pagemap tells of a page (Documentation/admin-guide/mm/pagemap.rst): present is bit 63, swapped bit 62.
_IN_USE, _OF_FILE = np.uint64(1 << 62), np.uint64(1 << 61)
# PAGEMAP_SCAN, of Linux 6.7 and later: _IOWR('f', 16, struct pm_scan_arg), and its categories of pages.
_SCAN, _SCAN_SIZE = 0xC0606610, 96
_SCAN_FILE, _SCAN_PRESENT, _SCAN_SWAPPED = 1 << 2, 1 << 3, 1 << 4


@dataclass(frozen=True, slots=True)
class Mapping:
    """One private mapping of a file into this process, by addresses."""

    start: int
    stop: int

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies in it, whole."""
        start = tensor.data_ptr()
        return self.start <= start and start + tensor.nbytes <= self.stop


def file_mappings(path: Path | None = None) -> tuple[Mapping, ...]:
    """Return the private mappings of files into this process, or of one file; none where the system is not Linux."""
    if not sys.platform.startswith("linux"):
        return ()
    try:
        text = Path("/proc/self/maps").read_text()
    except OSError:
        return ()
    lines = (line.groups() for line in _LINE.finditer(text))
    return tuple(
        Mapping(int(start, 16), int(stop, 16))
        for start, stop, kind, inode, name in lines
        if kind == "p" and inode != "0" and (path is None or name == str(path))
    )


def in_files(tensors: Iterable[Tensor], mappings: Iterable[Mapping]) -> Iterator[Tensor]:
    """Yield those of `tensors` that are views of files, none of whose pages was written to in memory."""
    mappings = tuple(mappings)
    return (one for one in tensors if any(each.holds(one) for each in mappings) and not is_written(one))


class Pages:
    """Pages that hold so many bytes from an address on, to be asked again and again whether one of them was written to."""

    __slots__ = ("_count", "_first", "_scan")

    def __init__(self, start: int, size: int) -> None:
        self._first = start // mmap.PAGESIZE
        stop = -(-(start + size) // mmap.PAGESIZE)
        self._count = stop - self._first
        self._scan = _scan_argument(self._first * mmap.PAGESIZE, stop * mmap.PAGESIZE)

    @classmethod
    def of(cls, tensor: Tensor) -> Pages:
        """Return those of a tensor, a view of a file."""
        return cls(tensor.data_ptr(), tensor.nbytes)

    def is_written(self) -> bool:
        """Whether one was written to since the file was mapped, or the system does not tell.

        A page that nobody has touched counts as the file's. Of 6 MB that were given back it takes 1 us, or 4 us where the
        system cannot scan (Linux before 6.7); where somebody has read them since, 4 to 50 us.
        """
        if not self._count:
            return False
        try:
            if _can_scan():
                return bool(fcntl.ioctl(_pagemap(), _SCAN, self._scan))
            flags = os.pread(_pagemap(), 8 * self._count, 8 * self._first)
        except OSError:
            return True
        if len(flags) != 8 * self._count:
            return True
        states = np.frombuffer(flags, np.uint64)
        # Mostly none of them is in memory, which a single pass tells.
        return bool(states.max() >= _IN_USE and (states[states >= _IN_USE] & _OF_FILE == 0).any())


def is_written(tensor: Tensor) -> bool:
    """Whether a page of a view of a file was written to since it was mapped, or the system does not tell."""
    return Pages.of(tensor).is_written()


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
    return _give_back(start, stop)


def give_back_library(path: Path) -> int:
    """Give back the pages that this process has read of a library; return how many bytes are mapped of it.

    Whoever calls the library again reads them from the system's cache of the file, 64 kB at a time. Its data, which were
    written to on loading, stay.
    """
    mapped = 0
    for mapping in file_mappings(path):
        if not Pages(mapping.start, mapping.stop - mapping.start).is_written():
            mapped += _give_back(mapping.start, mapping.stop)
    return mapped


def _give_back(start: int, stop: int) -> int:
    done = ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONTNEED)
    return stop - start if done == 0 else 0


def _scan_argument(start: int, stop: int) -> bytearray:
    """Return what asks for the first run of pages, from address `start` to `stop`, that are in use and no file's."""
    in_use = _SCAN_PRESENT | _SCAN_SWAPPED
    # size, flags, start, end, walk_end, vec, vec_len, max_pages; inverted, all of, any of, and told of
    fields = (_SCAN_SIZE, 0, start, stop, 0, ctypes.addressof(_run), 1, 1, _SCAN_FILE, _SCAN_FILE, in_use, _SCAN_FILE)
    return bytearray(struct.pack("12Q", *fields))


# Where the system writes which pages it found (struct page_region). Nobody reads it: their number is enough.
_run = (ctypes.c_uint64 * 3)()


@cache
def _can_scan() -> bool:
    """Whether the system scans: what this process allocated is found to be no file's."""
    page = ctypes.addressof(_run) // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        pagemap = _pagemap()  # fails where the system is not Linux
        return bool(fcntl.ioctl(pagemap, _SCAN, _scan_argument(page, page + mmap.PAGESIZE)))
    except OSError:
        return False


@cache
def _pagemap() -> int:
    return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)


if hasattr(os, "register_at_fork"):  # what is open tells of the process that opened it
    os.register_at_fork(after_in_child=_pagemap.cache_clear)
