"""Progress is seen on a terminal alone, and only where somebody wants to see it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")

SHOWS = """
import sys, time
from safe_dtype.cli.progress_line import bar, progress, say, silence, steps
from safe_dtype.rendering.progress import tell
with silence(wanted="--quiet" in sys.argv), {context}:
    {work}
print("done")
"""


def on_a_terminal(command: list[str], **environment: str) -> tuple[str, str]:
    """Run a command whose stderr is a terminal; return what was on stdout, and what the terminal got."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    seen = bytearray()

    def read() -> None:
        try:
            while more := os.read(ours, 4096):
                seen.extend(more)
        except OSError:  # Linux' word for the end of it
            pass

    reader = threading.Thread(target=read)
    reader.start()
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, check=True, text=True, timeout=300,
            env=env | environment,
        )  # fmt: skip
    finally:
        os.close(theirs)
        reader.join(10)
        os.close(ours)
    return done.stdout, seen.decode()


def shows(context: str, work: str, *options: str, **environment: str) -> str:
    """Return what a terminal gets of work that is shown."""
    code = SHOWS.format(context=context, work=work)
    stdout, terminal = on_a_terminal([sys.executable, "-c", code, *options], **environment)
    assert stdout == "done\n"
    return terminal


HALF = "time.sleep(1.2); tell('batches', 1, 2); time.sleep(1)"


def test_time_to_go() -> None:
    """After a second a terminal sees what is done, how much of it, and how long it will take; it is cleared at the end."""
    terminal = shows("progress('loading it')", HALF)
    assert "loading it ... 00:01" in terminal
    assert "loading it: batches |" in terminal
    assert "50%, 00:02 so far, 00:0" in terminal
    assert "to go" in terminal
    assert terminal.rpartition("\r")[0].rstrip(" \r").endswith("to go")  # and then blanks


@pytest.mark.parametrize(
    ("context", "work", "words"),
    [
        ("steps('staging', of=4) as begin", "begin('one'); begin('two'); " + HALF, "staging: two |"),
        ("steps('staging', of=4) as begin", "begin('one'); begin('two'); " + HALF, "38%"),
        ("bar('auditing') as show", "show(3, 4); time.sleep(1.3)", "auditing |"),
        ("progress('x')", "time.sleep(1.2); say('a line'); time.sleep(0.6)", "a line\r\n"),
    ],
)
def test_kinds(context: str, work: str, words: str) -> None:
    """Steps, numbers and lines above are shown as well."""
    assert words in shows(context, work)


@pytest.mark.parametrize(
    ("work", "options", "environment"),
    [
        pytest.param("tell('batches', 1, 2)", (), {}, id="over-in-a-moment"),
        pytest.param(HALF, ("--quiet",), {}, id="quiet"),
        pytest.param(HALF, (), {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, id="environment"),
        pytest.param(HALF, (), {"TQDM_DISABLE": "1"}, id="tqdm"),
    ],
)
def test_nothing(work: str, options: tuple[str, ...], environment: dict[str, str]) -> None:
    """Nothing is shown of what takes less than a second, or where it is not wanted."""
    assert shows("progress('loading it')", work, *options, **environment) == ""


def test_nothing_in_a_pipe() -> None:
    """In a pipe there is nothing of it."""
    code = SHOWS.format(context="progress('loading it')", work=HALF)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.slow
def test_rescue(tiny_qwen3: Path, tmp_path: Path) -> None:
    """`rescue` shows what it is at on a terminal, and writes nothing but its result elsewhere."""
    words = [sys.executable, "-m", "safe_dtype", "rescue", str(tiny_qwen3)]
    text, terminal = on_a_terminal(words, SAFE_DTYPE_CACHE=str(tmp_path / "first"))
    assert "float16 is safe here." in text
    assert "to go" in terminal
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"SAFE_DTYPE_CACHE": str(tmp_path / "second")},
    )
    assert "%" not in done.stderr
