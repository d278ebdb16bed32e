"""Run another Python whose models are planned, and those of every Python that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ..planning import Policy
from ..processes.rank_process import MARK
from .telling import Telling

_STARTUP = str(Path(__file__).resolve().parent / "startup")  # has a sitecustomize.py, which every Python looks for
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


def become_python(arguments: Sequence[str], policy: Policy, tell: Telling = "line") -> NoReturn:
    """Replace this process by `python ARGUMENTS`, patched from the start.

    It is a Python of its own, so that arguments, paths, tracebacks and exit codes are those of plain Python.
    """
    command = [sys.executable, *interpreter_options(), *arguments]
    environment = environment_for_children(policy, os.environ, tell)
    environment.pop(MARK, None)  # the Python that comes is the rank, not this one
    if os.name == "nt":  # exec would start a second process there, and the shell would go on with the end of this one
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def environment_for_children(policy: Policy, environment: Mapping[str, str], tell: Telling = "line") -> dict[str, str]:
    """Return `environment` with what makes a Python patch itself when it imports transformers."""
    before = [one for one in (environment.get("PYTHONPATH") or _STARTUP).split(os.pathsep) if one != _STARTUP]
    # `python -m safe_dtype.run` in a folder that holds the package: the script's own folder will be another.
    ours = [_PACKAGE_PARENT] if Path(sys.path[0] or ".").resolve() == Path(_PACKAGE_PARENT) else []
    path = os.pathsep.join(dict.fromkeys([_STARTUP, *before, *ours]))
    return {**environment, "PYTHONPATH": path, "SAFE_DTYPE_PATCH": str(policy), "SAFE_DTYPE_TELL": tell}


def interpreter_options() -> list[str]:
    """Return the options in `python OPTIONS -m safe_dtype.run ...`; none for an installed command."""
    *options, flag, module = ["", "", *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]
    if not flag.startswith("-") or not flag.endswith("m") or module.partition(".")[0] != "safe_dtype":
        return []
    return [one for one in (*options, flag[:-1]) if one not in ("", "-")]
