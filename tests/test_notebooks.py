"""The notebooks run, on a T4 that is rehearsed, and hold no outputs that could be old."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT
from notebook_cells import code_cells, python_of

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_notebook_has_no_outputs(notebook: Path) -> None:
    """Cells are stripped, have names of their own, and their code is Python."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    for cell in code_cells(notebook):
        compile(python_of(cell), notebook.name, "exec")


def test_cells_become_python() -> None:
    """An install is left out, and a command is run with the values of its names."""
    assert python_of("%pip install x\nx = 1\n!echo {x} 'y'") == "x = 1\nrun_command(f\"echo {x} 'y'\")"


@pytest.mark.slow
def test_t4_notebook(tmp_path: Path) -> None:
    """On a rehearsal T4 plain float16 writes nothing, safe_dtype's float16 the sentence; plan, drift and report are shown."""
    sys.path.append(str(ROOT / "examples"))
    import t4

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "notebook_cells.py", ROOT / "examples" / "t4.ipynb"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | t4.rehearsal("T4") | {"SAFE_DTYPE_CACHE": str(tmp_path / "verdicts"), "COLUMNS": "110"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for seen in (
        "Tesla T4", "plain float16: The argument is<|endoftext|>", "float16 here:  The argument is the name of the file.",
        "mlp.up_proj / mlp.down_proj 2^-8", "<table>", "within the usual limit of 0.02", "in float16: 0 events",
        "**Qwen3ForCausalLM** in float16",
    ):  # fmt: skip
        assert seen in done.stdout, done.stdout
