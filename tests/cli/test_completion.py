"""What shells complete: commands, options, dtypes and paths, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_run import Run

COMMAND = Path(sys.executable).parent / "safe-dtype"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script(shell: str, run: Run) -> None:
    """There is a script for each shell, which asks the command, and which the shell can read where it is here."""
    done = run("completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_SAFE_DTYPE_COMPLETE={shell}_complete" in done.stdout
    if executable := shutil.which(shell):
        subprocess.run([executable, "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param("safe-dtype pl", {"plain,plan"}, id="command"),
        pytest.param("safe-dtype cache ", {"plain,list", "plain,clear", "plain,path"}, id="verb"),
        pytest.param("safe-dtype plan --dev", {"plain,--device"}, id="option"),
        pytest.param("safe-dtype plan --dtype bx", set(), id="no-such-dtype"),
        pytest.param("safe-dtype plan --dtype b", {"plain,bfloat16"}, id="dtype"),
        pytest.param("safe-dtype plan ex", {"file,ex"}, id="model"),
        pytest.param("safe-dtype run tr", {"file,tr"}, id="script"),
    ],
)
def test_answers(words: str, offered: set[str]) -> None:
    """The command answers a shell, with torch not even installed."""
    environment = {
        **os.environ, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_SAFE_DTYPE_COMPLETE": "bash_complete",
    }  # fmt: skip
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['safe-dtype']; from safe_dtype.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.skipif(
    shutil.which("bash") is None or not COMMAND.exists(), reason="needs bash and the installed command"
)
def test_in_bash(tmp_path: Path) -> None:
    """In bash the script is loaded and completes."""
    script = (
        f'PATH="{COMMAND.parent}:$PATH"; eval "$(safe-dtype completion bash)"; COMP_WORDS=(safe-dtype pub); COMP_CWORD=1; '
        '_safe_dtype_completion safe-dtype; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "publish\n", done.stderr
