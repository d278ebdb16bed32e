"""Run the code of a notebook in this process, and show what each cell would: `python tests/notebook_cells.py FILE`.

It takes the place of a Jupyter kernel, which is larger than all that the tests need. Installing (`%pip`) is left out, and a
command (`!`) runs with this Python's programs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def code_cells(notebook: Path) -> list[str]:
    """Return the source of every code cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def python_of(cell: str) -> str:
    """Return the Python of a cell, with its commands as calls of `run_command` and without its installs."""
    lines = [line for line in cell.splitlines() if not line.startswith("%pip ")]
    return "\n".join(re.sub(r"^!(.*)$", lambda match: f"run_command(f{match[1]!r})", line) for line in lines)


def run_command(command: str) -> None:
    """Run one command in a shell, with the programs beside this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": path})


def show(value: Any) -> None:
    """Write what a notebook shows of the last value of a cell: its HTML where it has such, else its repr."""
    if value is not None:
        shown = value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)
        sys.stdout.write(f"{shown}\n")


def run_cells(notebook: Path) -> None:
    """Run all cells, one after another, in one namespace."""
    names: dict[str, Any] = {"run_command": run_command}
    for number, cell in enumerate(code_cells(notebook)):
        body = ast.parse(python_of(cell)).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        where = f"{notebook.name}, code cell {number}"
        exec(compile(ast.Module(body, []), where, "exec"), names)
        if last is not None:
            show(eval(compile(ast.Expression(last.value), where, "eval"), names))
        sys.stdout.flush()


if __name__ == "__main__":
    run_cells(Path(sys.argv[1]))
