"""Programs that know nothing of safe_dtype, run under it; each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Saved = Callable[..., Path]

COMMANDS = {
    "command": [str(Path(sys.executable).parent / "safe-dtype"), "run"],
    "module": [sys.executable, "-m", "safe_dtype.run"],
}
LOAD = """
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
plan = getattr(model, "_safe_dtype_origin", None)
print("PLANNED" if plan else "PLAIN", plan.plan.policy if plan else "", model.dtype)
"""


def python(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python to its end."""
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}, timeout=300
    )


def script(folder: Path, text: str, name: str = "script.py") -> str:
    """Write a program."""
    (folder / name).write_text(text)
    return str(folder / name)


def test_script(saved: Saved, tmp_path: Path) -> None:
    """A script's models are planned, with the policy of the command."""
    found = python(*COMMANDS["command"], "--policy", "prefer=memory", script(tmp_path, LOAD), str(saved()))
    assert found.returncode == 0, found.stderr
    assert "PLANNED auto,prefer=memory torch.bfloat16" in found.stdout


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import pipeline",
        pytest.param("import transformers.pipelines", marks=pytest.mark.slow),
        pytest.param("import peft", marks=pytest.mark.slow),
    ],
)
def test_whatever_is_imported_first(first: str, saved: Saved, tmp_path: Path) -> None:
    """Modules that import one another are patched as they are ready, without a word of those that are not yet."""
    done = python(*COMMANDS["command"], script(tmp_path, first + LOAD), str(saved()))
    assert "PLANNED" in done.stdout, done.stderr
    assert "nothing is patched" not in done.stderr


def test_unknown_model_type(saved: Saved, tmp_path: Path) -> None:
    """A model type that transformers does not know loads by its architecture, in the first line that asks for it."""
    folder = shutil.copytree(saved(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    done = python(*COMMANDS["command"], script(tmp_path, LOAD), str(folder))
    assert "PLANNED" in done.stdout, done.stderr
    assert "no model type 'unheard_of'" in done.stderr


def test_module(saved: Saved, tmp_path: Path) -> None:
    """`-m` runs a module of the folder one is in."""
    script(tmp_path, LOAD, "own_module.py")
    found = python(*COMMANDS["module"], "-m", "own_module", str(saved()), cwd=tmp_path)
    assert "PLANNED" in found.stdout, found.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_as_plain_python(command: str, tmp_path: Path) -> None:
    """Arguments, even `--help`, paths, name, exit code, output and traceback are those of plain Python."""
    text = (
        "import sys, os\nprint(sys.argv, sys.path[0], __name__, __file__)\n"
        "print('to stderr', file=sys.stderr)\nsys.exit(7) if len(sys.argv) > 3 else 1 / 0\n"
    )
    path = script(tmp_path, text)
    for arguments in (["--help", "-x", "--policy", "a b"], ["one"]):
        plain = python(sys.executable, path, *arguments)
        ours = python(*COMMANDS[command], path, *arguments)
        assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_pays_nothing_without_transformers(tmp_path: Path) -> None:
    """A script that never imports transformers gets neither torch nor transformers nor safe_dtype."""
    text = "import sys\nprint([one for one in ('torch', 'transformers', 'safe_dtype') if one in sys.modules])"
    assert python(*COMMANDS["command"], script(tmp_path, text)).stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
def test_import_order(order: str, saved: Saved, tmp_path: Path) -> None:
    """`patch()` works whether transformers was used before it, unplanned, or imported after it, and imports it not."""
    patch = "import safe_dtype; safe_dtype.patch(); import sys; print('torch' in sys.modules)"
    text = f"{LOAD}{patch}{LOAD}" if order == "before" else f"{patch}{LOAD}"
    found = python(sys.executable, script(tmp_path, text), str(saved()))
    answers = [line.split()[0] for line in found.stdout.splitlines()]
    assert answers == (["PLAIN", "True", "PLANNED"] if order == "before" else ["False", "PLANNED"]), found.stderr


def test_another_sitecustomize(tmp_path: Path) -> None:
    """A sitecustomize that was there before runs as it did."""
    (tmp_path / "site").mkdir()
    script(tmp_path / "site", "print('theirs')", "sitecustomize.py")
    found = python(*COMMANDS["command"], script(tmp_path, "print('mine')"), PYTHONPATH=str(tmp_path / "site"))
    assert found.stdout.endswith("theirs\nmine\n")


def test_a_python_without_safe_dtype(tmp_path: Path) -> None:
    """A child whose packages are others starts as if nothing were there."""
    (tmp_path / "transformers").mkdir()
    script(tmp_path / "transformers", "", "__init__.py")
    script(tmp_path / "transformers", "", "modeling_utils.py")
    inner = (
        "import sys; sys.path[:] = [one for one in sys.path if 'site-packages' not in one]; sys.modules['safe_dtype'] ="
        f" None; sys.path.insert(0, {str(tmp_path)!r}); import transformers.modeling_utils; print('fine')"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    found = python(*COMMANDS["command"], script(tmp_path, outer))
    assert found.stdout == "fine\n", found.stderr


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher: str, saved: Saved, tmp_path: Path) -> None:
    """`accelerate launch -m safe_dtype.run` and `torchrun -m safe_dtype.run` cover the processes that they start."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "safe_dtype.run"]
    found = python(*command, script(tmp_path, LOAD), str(saved()), cwd=tmp_path)
    assert found.stdout.count("PLANNED") == (2 if launcher == "torchrun" else 1), found.stderr
