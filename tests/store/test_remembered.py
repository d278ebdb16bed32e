"""What is remembered under a key comes back under that key alone, and a file that is broken is as good as none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from safe_dtype.store import cache_folder, one_process_at_a_time, recall, remember

KEY = {"device": "cpu", "shapes": [[1, 2]], "settings": {"threads": "2"}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which is not there yet."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


def value(entry: Any) -> Any:
    """Return the value in an entry."""
    return entry["value"]


def only_file(folder: Path) -> Path:
    """Return the one file there is."""
    (file,) = folder.iterdir()
    return file


def test_remembered() -> None:
    """What was written last comes back, with when that was."""
    assert recall(KEY, value) is None
    remember(KEY, {"value": [1, "ä", None, 0.1]})
    assert recall(KEY, value) == [1, "ä", None, 0.1]
    assert recall(KEY, lambda entry: abs(time.time() - entry["measured_at"]) < 60)
    remember(KEY, {"value": 2})
    assert recall(KEY, value) == 2


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({**KEY, "device": "cuda:0"}, id="another-value"),
        pytest.param({**KEY, "more": None}, id="one-more"),
        pytest.param({"device": "cpu"}, id="some-less"),
        pytest.param({**KEY, "shapes": [[2, 1]]}, id="another-order-inside"),
    ],
)
def test_another_key(other: dict[str, Any]) -> None:
    """A key that differs anywhere has an answer of its own."""
    remember(KEY, {"value": 1})
    assert recall(other, value) is None
    remember(other, {"value": 2})
    assert (recall(KEY, value), recall(other, value)) == (1, 2)


def test_the_same_key(folder: Path) -> None:
    """The order in which a key is written down, and tuples in the place of lists, make no difference."""
    remember(KEY, {"value": 1})
    same = {"shapes": ((1, 2),), "settings": {"threads": "2"}, "device": "cpu"}
    assert recall(same, value) == 1
    remember(same, {"value": 2})
    assert recall(KEY, value) == 2
    assert len(list(folder.iterdir())) == 1


BROKEN = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda _: "",
    "a-list": lambda _: "[1]",
    "no-key": lambda _: '{"schema": 1}',
    "another-key": lambda text: text.replace('"cpu"', '"cuda"'),
    "a-newer-schema": lambda text: text.replace('"schema": 1', '"schema": 2'),
    "no-value": lambda text: text.replace('"value"', '"other"'),
    "another-value": lambda text: text.replace('"value": 1', '"value": 2'),
    "a-text": lambda _: '"text"',
    "null": lambda _: "null",
    "a-number": lambda _: "1e999",
    "deep-lists": lambda _: "[" * 100_000 + "]" * 100_000,
    "deep-tables": lambda _: '{"schema":' * 100_000 + "1" + "}" * 100_000,
    "many-digits": lambda text: text.replace('"schema": 1', '"schema": ' + "1" * 10_000),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_broken(spoil: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is broken, or is another's, is logged with its name, and the next to remember replaces it."""
    remember(KEY, {"value": 1})
    file = only_file(folder)
    file.write_text(spoil(file.read_text()))
    assert recall(KEY, value) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{file} cannot be read" in record.getMessage()
    remember(KEY, {"value": 3})
    assert recall(KEY, value) == 3


def test_written_before_there_was_a_digest(folder: Path) -> None:
    """A file without a digest is believed as far as it can be read."""
    remember(KEY, {"value": 1})
    entry = json.loads(only_file(folder).read_text())
    del entry["digest"]
    only_file(folder).write_text(json.dumps(entry))
    assert recall(KEY, value) == 1
    only_file(folder).write_text(json.dumps({**entry, "value": "text"}))
    assert recall(KEY, lambda entry: Answer(entry["value"])) is None


@dataclass(frozen=True)
class Answer:
    """Something that is remembered."""

    number: int


def a_folder(file: Path) -> None:
    """Put a folder in the place of a file."""
    file.mkdir()


def a_loop(file: Path) -> None:
    """Put a link to itself there."""
    file.symlink_to(file)


def a_pipe(file: Path) -> None:
    """Put a pipe there, which nobody writes into."""
    os.mkfifo(file)


def a_large_file(file: Path) -> None:
    """Put a file there that takes long to read."""
    with file.open("wb") as out:
        out.truncate(2**32)


def a_locked_file(file: Path) -> None:
    """Put a file there that this user may not read."""
    file.touch(mode=0)


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are Unix")
@pytest.mark.parametrize("put", [a_folder, a_loop, a_pipe, a_large_file, a_locked_file])
def test_no_file(put: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So is whatever else is in its place; nothing waits for it."""
    remember(KEY, {"value": 1})
    file = only_file(folder)
    file.unlink()
    put(file)
    assert recall(KEY, value) is None
    assert f"{file} cannot be read" in caplog.text
    with one_process_at_a_time(KEY):
        remember(KEY, {"value": 2})
    assert recall(KEY, value) in (None, 2)


def test_whatever_reading_raises(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot make anything of an entry may say so by any exception."""
    remember(KEY, {"value": 1})
    assert recall(KEY, lambda entry: entry["value"].items()) is None
    assert recall(KEY, lambda entry: entry["value"] / 0) is None
    assert caplog.text.count("cannot be read") == 2


def test_bytes_that_are_no_text(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So is one that is not UTF-8."""
    remember(KEY, {"value": 1})
    only_file(folder).write_bytes(b"\xff\xfe")
    assert recall(KEY, value) is None
    assert "cannot be read" in caplog.text


def test_cannot_be_written(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no file can be written that is logged, and nothing else happens."""
    folder.parent.write_text("a file where a folder should be")
    remember(KEY, {"value": 1})
    assert "cannot be written" in caplog.text
    with one_process_at_a_time(KEY):
        pass


_IN_TURN = """
import sys, time
from pathlib import Path
from safe_dtype.store import one_process_at_a_time

log = Path(sys.argv[1])
with one_process_at_a_time({"k": 1}):
    with log.open("a") as out:
        out.write("in ")
    time.sleep(0.1)
    with log.open("a") as out:
        out.write("out ")
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Of three processes each is out before the next is in."""
    log = tmp_path / "log"
    children = [subprocess.Popen([sys.executable, "-c", _IN_TURN, log]) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert log.read_text().split() == ["in", "out"] * 3


def test_after_an_error() -> None:
    """A measurement that fails lets the next process go on."""
    with pytest.raises(ZeroDivisionError), one_process_at_a_time(KEY):
        raise ZeroDivisionError
    with one_process_at_a_time(KEY):
        pass


def test_other_keys_do_not_wait() -> None:
    """Two keys are measured at the same time."""
    with one_process_at_a_time(KEY), one_process_at_a_time({"another": 1}):
        pass


def test_where(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    """SAFE_DTYPE_CACHE names the folder itself, ~ in it is the home; else it is one in the user's cache folder."""
    assert cache_folder() == folder
    monkeypatch.setenv("SAFE_DTYPE_CACHE", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("SAFE_DTYPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "safe_dtype"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other folders")
def test_where_on_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On Linux that is ~/.cache."""
    monkeypatch.delenv("SAFE_DTYPE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "safe_dtype"


def test_entry(folder: Path) -> None:
    """The file is JSON that says what it belongs to."""
    remember(KEY, {"value": 1})
    entry = json.loads(only_file(folder).read_text("utf-8"))
    assert (entry["schema"], entry["key"], entry["value"]) == (1, KEY, 1)


def test_folder_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in the home of a user who is not there is a folder called so, as in a shell."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", "~nobody-of-that-name/cache")
    assert cache_folder() == Path("~nobody-of-that-name/cache")


def test_file_in_the_place_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the cache cannot be a folder that is said once, in one line, and everything goes on."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "file"))
    for number in range(3):
        assert recall({"n": number}, dict) is None
        remember({"n": number}, {"value": 1})
    (record,) = caplog.records
    assert f"the cache folder {tmp_path / 'file'} cannot be written" in record.getMessage()
