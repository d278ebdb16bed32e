"""The command on terminals and pipes of any encoding and any width."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import factories as f
import pytest
from rich.cells import cell_len

from safe_dtype.cli.options import columns
from safe_dtype.planning import make_plan
from safe_dtype.rendering.tables import Column, page, table

PRINT = """
import sys
import click
from safe_dtype.rendering.streams import accept_any_text
accept_any_text()
text = "a\\u2500\\u2026 \\u00e9 \\u2265 \\u0142 \\u4f60 \\udcff \\u00b5s"
click.echo(text)
click.echo(text, err=True)
print(text)
sys.stdout.write(text)
"""


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("ascii", "a-... e >= \\u0142 \\u4f60 \\udcff us"),
        ("latin-1", "a-... \u00e9 >= \\u0142 \\u4f60 \\udcff \u00b5s"),
        ("cp1252", "a-\u2026 \u00e9 >= \\u0142 \\u4f60 \\udcff \u00b5s"),
        ("utf-8", "a\u2500\u2026 \u00e9 \u2265 \u0142 \u4f60 \\udcff \u00b5s"),
        ("ascii:replace", None),
    ],
)
def test_every_encoding(encoding: str, text: str | None) -> None:
    """What an encoding lacks is written in ASCII: signs by their like, letters without accents, the rest as escapes."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    if text is None:  # who names a way to handle errors gets it
        assert b"?" in done.stdout
        return
    expected = text.encode(encoding)
    assert done.stdout.split(os.linesep.encode()) == [expected] * 3
    assert done.stderr.strip() == expected


@pytest.mark.slow
def test_plan_in_ascii(tmp_path: Path, tiny_qwen3: Path) -> None:
    """The table of a plan, of a folder whose name no such terminal can show."""
    folder = tmp_path / "\u6a21\u578b-\u00e9"
    folder.symlink_to(tiny_qwen3)
    command = [sys.executable, "-m", "safe_dtype", "plan", str(folder), "--device", "NVIDIA H100"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "90"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert "\\u6a21\\u578b" in text
    assert "-" * 30 in text
    plan = json.loads(subprocess.check_output([*command, "--format", "json"], env=environment))
    assert plan["source"] == str(folder)


@pytest.mark.parametrize(
    ("setting", "width"), [(None, 110), ("", 110), ("x", 110), ("0", 110), ("70", 70), ("200", 200), ("5", 40)]
)
def test_columns(setting: str | None, width: int, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    """COLUMNS is how wide texts are; in a pipe without it they have a width that suits a file."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if setting is not None:
        monkeypatch.setenv("COLUMNS", setting)
    assert columns() == width


def test_wide_characters() -> None:
    """Signs that take two columns are counted as two."""
    plan = make_plan(replace(f.AMPERE, name="\u5361" * 30), replace(f.checkpoint(), source="\u6a21\u578b" * 30))
    for width in (60, 110):
        assert max(map(cell_len, plan.explain(width=width).splitlines())) <= width


def test_names_are_shown_as_they_are() -> None:
    """No part of a name becomes an emoji, markup, or an order to the terminal."""
    name = "layers.:x:.[bold]weight\x1b[31m\x07\x9b"
    for text in (page([name], width=80), page([table([Column("name", wraps=True)], [[name]])], width=80)):
        assert "layers.:x:.[bold]weight\\x1b[31m" in text
        assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in text.replace("\n", ""))
