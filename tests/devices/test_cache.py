"""Verdicts on disk: many processes at once, files that are broken, folders that cannot be written."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safe_dtype.devices import cache
from safe_dtype.devices.cache import load, store
from safe_dtype.devices.probing.verdicts import by_one_thread
from safe_dtype.facts import BFLOAT16, Timing, Verdict, VerdictKind
from safe_dtype.store import cache_folder, one_process_at_a_time

KEY = {"name": "a device", "settings": {"threads": "2"}, "widths": [[3072, 1024]]}
STORED = (Verdict(BFLOAT16, "matmul", VerdictKind.SLOW, "why", 1e9, 2e9, 3e-3, (Timing(1, (2, 3), 0.5),)),)
BUSY = tuple(by_one_thread(verdict) for verdict in STORED)
WRITERS, READERS = 4, 4

WRITE_AND_READ = """
import logging, sys
from safe_dtype.devices.cache import load, store
from safe_dtype.facts import BFLOAT16, Verdict, VerdictKind

logging.basicConfig(level=logging.WARNING)  # a broken file would be a line on stderr
number = int(sys.argv[1])
for turn in range(150):
    if number:
        # Of another length each time: a torn write would show.
        store({"k": 1}, [Verdict(BFLOAT16, "x" * number * turn, VerdictKind.SLOW, "") for _ in range(number)])
    found = load({"k": 1})
    assert found is None or len({one.op for one in found}) == 1
print("done")
"""

MEASURE_ONCE = """
import time
from pathlib import Path
from safe_dtype.devices.cache import load, store
from safe_dtype.store import cache_folder, one_process_at_a_time

key = {"k": 2}
with one_process_at_a_time(key):
    if load(key) is None:
        with (cache_folder() / "measured").open("a") as log:
            log.write("x")
        time.sleep(0.3)
        store(key, ())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "verdicts"))
    return tmp_path / "verdicts"


def the_file(folder: Path) -> Path:
    """Return the only file of verdicts."""
    (file,) = folder.glob("*.json")
    return file


def test_round_trip() -> None:
    """What is stored is what is loaded."""
    assert load(KEY) is None
    store(KEY, STORED)
    assert load(KEY) == STORED


def test_other_key() -> None:
    """Whatever differs in the key is another file."""
    store(KEY, STORED)
    assert load({**KEY, "settings": {"threads": "1"}}) is None


def change(**fields: Any) -> Callable[[str], str]:
    """Return what replaces fields of a file."""
    return lambda text: json.dumps({**json.loads(text), **fields})


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: "[]", id="not-an-object"),
        pytest.param(lambda text: "\x00" * 100, id="zeros"),
        pytest.param(change(schema=0), id="older-schema"),
        pytest.param(change(key={"name": "another"}), id="the-key-of-something-else"),
        pytest.param(change(verdicts=[{"dtype": "bfloat16"}]), id="half-a-verdict"),
        pytest.param(change(verdicts=[{"surprise": 1}]), id="no-verdict"),
        pytest.param(change(verdicts=None), id="no-list"),
        pytest.param(lambda text: text.replace("slow", "sluggish"), id="unknown-kind"),
        pytest.param(lambda text: text.replace("bfloat16", "bfloat17"), id="unknown-dtype"),
    ],
)
def test_broken_files(folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[str], str]) -> None:
    """A file that cannot be believed is ignored with one line in the log, and replaced by the next store."""
    store(KEY, STORED)
    file = the_file(folder)
    file.write_text(damage(file.read_text()))
    with caplog.at_level(logging.WARNING):
        assert load(KEY) is None
    assert len(caplog.records) == 1
    assert "measuring again" in caplog.text
    store(KEY, STORED)
    assert load(KEY) == STORED


def test_bytes_that_are_no_text(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not even text is needed to be ignored."""
    store(KEY, STORED)
    the_file(folder).write_bytes(b"\xff\xfe\x00")
    assert load(KEY) is None
    assert "measuring again" in caplog.text


def test_folder_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be written, a line in the log says so and nothing else happens."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "file" / "verdicts"))
    with one_process_at_a_time(KEY):
        store(KEY, STORED)
    assert "cannot be written" in caplog.text
    assert load(KEY) is None


def test_nothing_is_left_behind(folder: Path) -> None:
    """After a store there is one file, whole, and no temporary one."""
    store(KEY, STORED)
    store(KEY, STORED)
    assert [file.suffix for file in folder.iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("age", "free", "believed"),
    [
        pytest.param(1.0, True, True, id="just-now"),
        pytest.param(60.0, False, True, id="and-still-busy"),
        pytest.param(60.0, True, False, id="and-quiet-now"),
        pytest.param(3600.0, False, False, id="long-ago"),
    ],
)
def test_busy_measurements(
    age: float, folder: Path, monkeypatch: pytest.MonkeyPatch, *, free: bool, believed: bool
) -> None:
    """What was measured on a busy machine is measured again as soon as it is quiet, and later in any case."""
    monkeypatch.setattr(cache, "are_cores_free", lambda: free)
    store(KEY, BUSY)
    file = the_file(folder)
    file.write_text(change(measured_at=time.time() - age)(file.read_text()))
    assert load(KEY) == (BUSY if believed else None)


def test_quiet_measurements_last(folder: Path) -> None:
    """What was measured on a quiet machine holds."""
    store(KEY, STORED)
    file = the_file(folder)
    file.write_text(change(measured_at=0.0)(file.read_text()))
    assert load(KEY) == STORED


def test_many_processes(folder: Path) -> None:
    """Processes that write and read the same file at once see whole files only."""
    numbers = [*range(1, WRITERS + 1), *[0] * READERS]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_AND_READ, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in numbers
    ]
    for process in started:
        assert process.communicate() == ("done\n", "")
    assert [file.suffix for file in folder.iterdir()] == [".json"]


def test_one_measures_while_the_others_wait(folder: Path) -> None:
    """Of many processes that start on an empty cache, one measures."""
    started = [subprocess.Popen([sys.executable, "-c", MEASURE_ONCE]) for _ in range(5)]
    assert [process.wait() for process in started] == [0] * 5
    assert (folder / "measured").read_text() == "x"


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SAFE_DTYPE_CACHE decides, then XDG_CACHE_HOME, then the user's home."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("SAFE_DTYPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "safe_dtype"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().is_relative_to(Path.home())
