"""Which memory is a file's own, and that nothing which was written is ever given back."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safe_dtype.numerics.pages import Pages, file_mappings, give_back, in_files, is_written

pytestmark = pytest.mark.needs("pagemap")
PAGE = mmap.PAGESIZE // 2  # elements of 16 bit
LENGTH = 16 * PAGE


@pytest.fixture
def mapped(tmp_path: Path) -> Tensor:
    """A tensor that is a private view of a file, as weights of safetensors are: 16 pages of the numbers from 0 on."""
    return view_of(tmp_path / "weights", shared=False)


def view_of(path: Path, *, shared: bool) -> Tensor:
    """Write a file, and map it."""
    torch.arange(LENGTH, dtype=torch.int32).to(torch.int16).numpy().tofile(path)
    return torch.from_file(str(path), shared=shared, size=LENGTH, dtype=torch.int16)


def original() -> Tensor:
    """Return what the file holds."""
    return torch.arange(LENGTH, dtype=torch.int32).to(torch.int16)


def is_in_file(tensor: Tensor) -> bool:
    """Whether `in_files` yields a tensor."""
    return bool(list(in_files([tensor], file_mappings())))


def in_memory(tensor: Tensor) -> int:
    """Return how many bytes of the file are this process's, in the mapping that holds a tensor."""
    head = f"{tensor.data_ptr():x}-"
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    return 1024 * int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1])


def test_a_view_of_a_file_is_found(mapped: Tensor) -> None:
    """A mapped tensor, and a part of it, lie in a file."""
    assert is_in_file(mapped)
    assert is_in_file(mapped[100:300])


def test_reading_is_not_writing(mapped: Tensor) -> None:
    """After all of it was read, a view is still the file's."""
    assert int(mapped.long().sum()) == int(original().long().sum())
    assert not is_written(mapped)


def test_other_memory_is_no_files(tmp_path: Path) -> None:
    """Allocated memory, and a shared mapping, whose writes go to the file, are none of ours."""
    assert not is_in_file(torch.ones(LENGTH))
    assert not is_in_file(view_of(tmp_path / "shared", shared=True))


WRITES: dict[str, Callable[[Tensor], object]] = {
    "all": lambda one: one.add_(1),
    "through-data": lambda one: one.data.add_(1),
    "through-numpy": lambda one: one.numpy().__iadd__(1),
    "the-number-it-was": lambda one: one.copy_(original()),
    "first-element": lambda one: one[:1].fill_(7),
    "last-element": lambda one: one[-1:].fill_(7),
    "one-inside": lambda one: one[5 * PAGE + 3].fill_(7),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_was_written_is_never_given_back(mapped: Tensor, write: Callable[[Tensor], object]) -> None:
    """One written element is enough: the view counts as written, and what was written stays."""
    write(mapped)
    expected = mapped.clone()
    assert is_written(mapped)
    assert not is_in_file(mapped)
    assert give_back(mapped) == 0
    assert torch.equal(mapped, expected)


def test_pages_are_asked_again_and_again(mapped: Tensor) -> None:
    """The same object tells of a write that came after it was made, and of every later one."""
    pages, others = Pages.of(mapped[2 * PAGE : 3 * PAGE]), Pages.of(mapped[5 * PAGE :])
    assert not pages.is_written()
    assert not others.is_written()
    mapped[5 * PAGE + 3] = 7
    assert not pages.is_written()
    assert others.is_written()
    mapped[2 * PAGE] = 7
    assert pages.is_written()
    assert others.is_written()


def test_nothing_is_never_written(mapped: Tensor) -> None:
    """An empty tensor has no pages."""
    mapped[0] = 7
    assert not Pages.of(mapped[:0]).is_written()


def test_what_was_given_back_and_read_again_is_the_files(mapped: Tensor) -> None:
    """Neither makes a page the process's own; a write after it does."""
    pages = Pages.of(mapped)
    assert give_back(mapped)
    assert not pages.is_written()
    assert torch.equal(mapped, original())
    assert not pages.is_written()
    assert give_back(mapped)
    mapped[-1] = 7
    assert pages.is_written()


def test_a_system_that_cannot_scan(tmp_path: Path) -> None:
    """Before Linux 6.7 the states of all pages are read: the same writes are seen, and reading is none."""
    code = f"""
import fcntl, sys
asked = []
def refuse(*arguments):
    asked.append(arguments)
    raise OSError(25, "Inappropriate ioctl for device")
fcntl.ioctl = refuse
sys.path.insert(0, {str(Path(__file__).resolve().parent.parent)!r})
from pathlib import Path
from numerics.test_pages import WRITES, view_of
from safe_dtype.numerics.pages import Pages, give_back
for name, write in WRITES.items():
    mapped = view_of(Path({str(tmp_path)!r}, name), shared=False)
    pages = Pages.of(mapped)
    seen = [pages.is_written()]
    mapped.long().sum()
    seen.append(pages.is_written())
    give_back(mapped)
    seen.append(pages.is_written())
    write(mapped)
    assert [*seen, pages.is_written()] == [False, False, False, True], (name, seen)
assert len(asked) == 1
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_mappings_read_before_a_write_do_no_harm(mapped: Tensor) -> None:
    """A write after the mappings were read is noticed: pages are asked when it matters."""
    mappings = file_mappings()
    mapped[5] = 7
    assert not list(in_files([mapped], mappings))


def test_pages_that_are_given_back_are_read_again(mapped: Tensor) -> None:
    """After giving back, memory is free, and the numbers are the same."""
    assert torch.equal(mapped, original())
    before = in_memory(mapped)
    assert give_back(mapped) == 16 * mmap.PAGESIZE
    assert (before, in_memory(mapped)) == (16 * mmap.PAGESIZE, 0)
    assert torch.equal(mapped, original())


def test_a_written_neighbour_in_the_same_file_stays(mapped: Tensor) -> None:
    """Of two tensors in a file, the one nobody wrote to is given back, and the other keeps what was written to it."""
    mine, other = mapped[: 8 * PAGE], mapped[8 * PAGE :]
    other.fill_(7)
    assert give_back(mine) == 8 * mmap.PAGESIZE
    assert torch.equal(mine, original()[: 8 * PAGE])
    assert bool((other == 7).all())


def test_a_page_that_is_shared_with_a_neighbour_is_kept(mapped: Tensor) -> None:
    """Only whole pages of the tensor's own are given back."""
    mine = mapped[10 : 3 * PAGE + 10]
    assert give_back(mine) == 2 * mmap.PAGESIZE


def test_a_neighbour_written_on_a_shared_page_counts(mapped: Tensor) -> None:
    """A written page that a tensor shares counts as written: whose numbers were changed cannot be seen."""
    mapped[0] = 7
    assert is_written(mapped[10:])


def test_a_tensor_smaller_than_a_page_is_kept(mapped: Tensor) -> None:
    """Less than a page is not worth giving back, and an empty tensor is nothing."""
    assert give_back(mapped[1:100]) == 0
    assert give_back(mapped[:0]) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_sees_its_own_writes(mapped: Tensor) -> None:
    """After a fork, the child's writes are the child's: it notices them, and its parent does not."""
    assert not is_written(mapped)
    child = os.fork()
    if child == 0:
        mapped.numpy()[:] = 7
        os._exit(0 if is_written(mapped) and give_back(mapped) == 0 and int(mapped[0]) == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not is_written(mapped)
