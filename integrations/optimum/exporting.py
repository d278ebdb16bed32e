"""Let optimum export a model, in its own environment, within a time limit. Imports no torch."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from safe_dtype.errors import NotOptimizableError
from safe_dtype.facts import Dtype
from safe_dtype.processes.child import how_it_ended, last_error
from safe_dtype.store.temporary import temporary_folder

from .older import copied_for_4
from .tasks import class_of, config_of
from .virtual_environment import environment, python_of, run_python

FILE = "model.onnx"
LOG = "optimum.log"
_SCRIPT = Path(__file__).with_name("inside.py")


@dataclass(frozen=True, slots=True)
class Order:
    """What optimum is asked to export."""

    model: Path  # a folder for `from_pretrained`
    task: str  # in optimum's words
    dtype: Dtype
    model_class: str = ""  # transformers' name; empty for the one that the config names


def export(order: Order, out: Path, *, via: str = "optimum-onnx", seconds: float) -> Path:
    """Export into the folder `out`, which is made anew, and return its `model.onnx`; `optimum.log` is beside it.

    The model's folder is only read: what optimum sees is a copy with a config that its transformers understands. All
    outputs that the model has are in the file, and one call is one graph: no cache, encoder and decoder together.
    Nothing is verified here.

    Args:
        order: What to export.
        out: Where to.
        via: One of VIAS. Its environment is made first, outside of the time limit.
        seconds: The time limit.

    Raises:
        EnvironmentNotFitError: If the environment cannot be made.
        NotOptimizableError: If optimum fails, with its error, or is too slow.
    """
    python = python_of(environment(via))
    model_class = order.model_class or class_of(config_of(order.model), order.model)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = out / LOG
    # Beside `out`, not in the system's folder: links to the weights do not cross disks.
    with temporary_folder(".optimum-", beside=out.parent) as beside:
        asked = {
            "model": str(copied_for_4(order.model, beside / "model")),
            "model_class": model_class,
            "task": order.task,
            "dtype": order.dtype.name,
            "out": str(out),
        }
        ticket = beside / "order.json"
        ticket.write_text(json.dumps(asked), encoding="utf-8")
        status = run_python(python, str(_SCRIPT), str(ticket), log=log, end=time.monotonic() + seconds)
    if status != 0:
        error = "" if status is None else f": {last_error(log)}"
        raise NotOptimizableError(
            f"optimum's export of {model_class} as {order.task} {how_it_ended(status, seconds)}{error}",
            f"see {log}; another --task, more time, or a form that needs no optimum",
        )
    return out / FILE
