"""Export a model and run it, by optimum-intel and OpenVINO in an environment of their own. Imports no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safe_dtype.errors import EnvironmentNotFitError, NotExportableError
from safe_dtype.processes.child import how_it_ended, last_error

from ..optimum.virtual_environment import environment, python_of, run_python

VIA = "optimum-intel"
LOG = "log"
_CHILD = Path(__file__).with_name("inside_openvino.py")
_SECONDS = 3600.0
_MISSING = "ModuleNotFoundError: "


def run_inside(
    job: dict[str, Any], folder: Path, *, python: str | os.PathLike[str] | None, progress: Callable[[str], None]
) -> str:
    """Do `job` (see inside_openvino.py), and return what OpenVINO computed in: "bf16", say.

    Args:
        job: As values of JSON.
        folder: Where the order, the answer and the log go.
        python: An interpreter with optimum-intel; None: that of an environment which is made here.
        progress: Called with a line of text before each long step.

    Raises:
        EnvironmentNotFitError: If there is no such environment.
        NotExportableError: If optimum-intel or OpenVINO fails.
    """
    interpreter = Path(python) if python is not None else python_of(environment(VIA, progress=progress))
    order, answer, log = folder / "order.json", folder / "answer.json", folder / LOG
    order.write_text(json.dumps({**job, "answer": str(answer)}), encoding="utf-8")
    progress(f"exporting as {job['kind']} by optimum-intel, and running it in OpenVINO")
    status = run_python(interpreter, str(_CHILD), str(order), log=log, end=time.monotonic() + _SECONDS)
    if status == 0:
        return str(json.loads(answer.read_text(encoding="utf-8"))["computed"])
    error = last_error(log)
    if error.startswith(_MISSING):
        raise EnvironmentNotFitError(
            f"an interpreter with optimum-intel: {interpreter} says {error.removeprefix(_MISSING)}",
            "make an environment with `pip install 'optimum-intel[openvino]'`, and name its interpreter; or name none",
        )
    raise NotExportableError(
        f"optimum-intel and OpenVINO {how_it_ended(status, _SECONDS)}: {error}",
        "see what `optimum-cli export openvino` says of it; its documentation lists the architectures",
    )
