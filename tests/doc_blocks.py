"""The fenced blocks of the documents: how they are found, run, and reported where they fail."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample

from safe_dtype.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^ *(`{3,}|~{3,})(.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block: of which page, in which language, from the line after the fence on."""

    page: Path
    language: str
    first_line: int
    text: str
    in_cog: bool  # written by cog, between its markers

    def __str__(self) -> str:
        return f"{self.page.name}:{self.first_line}"


def blocks_of(page: Path) -> list[Block]:
    """Return every fenced block of `page`, in order, whatever its language."""
    found: list[Block] = []
    fence, language, first_line, lines, in_cog = "", "", 0, [""], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = _FENCE.match(line)
        if not fence and "[[[" in line:
            in_cog = "[[[end]]]" not in line
        if fence and mark and mark[1].startswith(fence) and not mark[2].strip():
            found.append(Block(page, language, first_line, "\n".join(lines) + "\n", in_cog))
            fence = ""
        elif fence:
            lines.append(line)
        elif mark:
            fence, language, first_line, lines = mark[1], mark[2].strip(), number + 1, []
    assert not fence, f"{page.name}:{first_line}: this block is never closed"
    return found


def run_python(example: CodeExample, eval_example: EvalExample) -> None:
    """Run one Python block and hold what it prints against what it says; whatever fails is reported as text.

    The frames that pytest-examples makes up cannot be shown by pytest on every Python: on some it ends the whole run.
    """
    eval_example.set_config(line_length=119)
    report = ""
    try:
        eval_example.run_print_check(example)
    except Exception as error:  # noqa: BLE001  (anything at all: it is shown, and fails the test)
        report = "\n".join(_lines_about(error, example))
    if report:
        pytest.fail(report, pytrace=False)


def commands_of(block: Block) -> list[list[str]] | None:
    """Return the arguments of every `safe-dtype` in a block that holds nothing else; None where a shell is needed."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    commands = [line for line in words if line]
    plain = all(line[0] == "safe-dtype" and line[1] not in ("run", "launch") for line in commands)
    return [line[1:] for line in commands] if plain and not re.search(r"[|&;<>$`]", block.text) else None


def run_commands(block: Block, commands: list[list[str]]) -> None:
    """Run the commands of a block in this process and folder, where torch is imported already."""
    printed = io.StringIO()
    for arguments in commands:
        with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            main(arguments)
        if ended.value.code:
            pytest.fail(f"{block} ended with status {ended.value.code}:\n{block.text}", pytrace=False)
    assert printed.getvalue(), f"{block} printed nothing"


def run_bash(block: Block, folder: Path, environment: Mapping[str, str]) -> None:
    """Run one shell block in `folder`: it has to succeed, and to print something."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder, env={**os.environ, **environment, "PATH": commands}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"{block} ended with status {done.returncode}:\n{block.text}\n{done.stderr}", pytrace=False)
    assert done.stdout, f"{block} printed nothing"


def _lines_about(error: BaseException, example: CodeExample) -> Iterator[str]:
    """Say where in the page a block failed and with what, then what was underneath."""
    source = example.path.read_text(encoding="utf-8").splitlines()
    step = error.__traceback__
    while step is not None:
        # Of these frames only the name of the file and the number of the line can be relied on.
        if step.tb_frame.f_code.co_filename == str(example.path):
            yield f"{example.path}:{step.tb_lineno}: {source[step.tb_lineno - 1].strip()}"
        step = step.tb_next
    yield "".join(traceback.format_exception_only(error)).rstrip()
    if beneath := error.__cause__ or error.__context__:
        yield "Beneath it:"
        yield "".join(traceback.format_exception(beneath)).rstrip()
