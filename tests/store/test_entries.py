"""What is remembered is listed and forgotten, file by file, and nothing else is touched."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from safe_dtype.store import entries, forget, recall, remember
from safe_dtype.store.remembered import file_of

KEY = {"device": "cpu", "ops": ["matmul"]}
OTHER = {"device": "cuda", "ops": ["matmul"]}
NAME = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with one entry in it."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    remember(KEY, {"value": 1})
    return tmp_path / "cache"


def make_old(file: Path) -> None:
    """Have nobody touched `file` for two hours."""
    os.utime(file, (time.time() - 7200,) * 2, follow_symlinks=False)


def test_listed_and_forgotten(folder: Path) -> None:
    """An entry has its key, its time and its size; forgotten, it is measured anew, and the others stay."""
    remember(OTHER, {"value": 2})
    chosen = [entry for entry in entries() if entry.key == KEY]
    assert [(entry.bytes, entry.problem) for entry in chosen] == [(file_of(KEY).stat().st_size, "")]
    assert abs(time.time() - chosen[0].measured_at) < 60
    assert forget(chosen) == chosen
    assert recall(KEY, lambda entry: entry["value"]) is None
    assert recall(OTHER, lambda entry: entry["value"]) == 2


def test_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing was remembered there is nothing to list."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "not" / "there"))
    assert entries() == []
    assert forget([]) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "Expecting value", id="empty"),
        pytest.param('{"schema": 1, "key": {"devi', "Unterminated", id="cut-off"),
        pytest.param('{"schema": 1}', "key", id="no-key"),
        pytest.param('{"schema": 2, "key": {}}', "something else", id="another-schema"),
        pytest.param('{"schema": 1, "key": []}', "something else", id="no-table"),
        pytest.param('{"schema": 1, "key": {}, "digest": "x"}', "changed", id="changed"),
        pytest.param('{"schema": 1, "key": {}}', "something else", id="another-name"),
        pytest.param("\0\udcff", "", id="noise"),
    ],
)
def test_damaged(folder: Path, text: str, problem: str) -> None:
    """A file that cannot be read is listed with what is wrong, and can be forgotten."""
    file = folder / f"{NAME}.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    (damaged,) = [entry for entry in entries() if entry.file == file]
    assert damaged.problem
    assert problem in damaged.problem
    assert forget([damaged]) == [damaged]
    assert not file.exists()
    assert file_of(KEY).exists()


def test_what_is_not_ours_stays(folder: Path, tmp_path: Path) -> None:
    """Other names, folders, and the JSON of somebody else are neither listed nor touched, in the cache or beside it."""
    kept = [
        folder / "notes.json",
        folder / f"{NAME}x.json",
        folder / "stage" / f"{NAME}.json",
        folder / f"{NAME}.json",
    ]
    for file in kept:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"of": "somebody else"}))
    for digit, values in enumerate(([1, 2], "a text", {"key": "of somebody else"})):
        kept.append(folder / f"{str(digit) * 32}.json")
        kept[-1].write_text(json.dumps(values))
    directory = folder / f"{NAME[::-1]}.json"
    directory.mkdir()
    forget(entries())
    assert all(file.exists() for file in [*kept, directory])
    assert not file_of(KEY).exists()


def test_links(folder: Path, tmp_path: Path) -> None:
    """A link is listed as damaged and deleted; what it points to stays, file or folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").write_text("all of them")
    for name, target in ((NAME, outside), (NAME[::-1], outside / "weights")):
        (folder / f"{name}.json").symlink_to(target)
    links = [entry for entry in entries() if entry.problem]
    assert [entry.problem for entry in links] == ["it is a link"] * 2
    forget(links)
    assert (outside / "weights").read_text() == "all of them"
    assert [entry.key for entry in entries()] == [KEY]


def test_measured_anew_meanwhile() -> None:
    """What another process has written since it was listed is not deleted; what is gone already is no error."""
    listed = entries()
    remember(OTHER, {"value": 2})
    other = [entry for entry in entries() if entry.key == OTHER]
    time.sleep(0.01)
    remember(KEY, {"value": "anew"})
    file_of(OTHER).unlink()
    assert forget([*listed, *other]) == []
    assert recall(KEY, lambda entry: entry["value"]) == "anew"


def test_what_is_being_written_stays(folder: Path) -> None:
    """Locks and half files in use stay, those that a process left behind go with the next clearing."""
    young, old = folder / f".{NAME}.json.0a1b2c3d.part", folder / f".{NAME}.json.00000000.part"
    lock, of_entry = folder / f"{NAME}.lock", file_of(KEY).with_suffix(".lock")
    for file in (young, old, lock, of_entry):
        file.write_text("")
    for file in (old, lock, of_entry):
        make_old(file)
    forget([])
    assert (young.exists(), old.exists(), lock.exists(), of_entry.exists()) == (True, False, False, True)
