"""What every result file carries beside its figures: the machine, the versions, the command."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "safe-dtype")


def write_results(name: str, figures: Any, *, folder: Path = RESULTS) -> Path:
    """Write `figures` to NAME.json in `folder` with everything needed to judge them; return the path."""
    path = folder / f"{name}.json"
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    record = {"command": command, **circumstances(), "figures": figures}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def circumstances() -> dict[str, dict[str, Any]]:
    """Return the machine and the versions, as every result names them."""
    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {"machine": machine, "versions": {name: version(name) for name in _PACKAGES}}


def _cpu_name() -> str:
    from safe_dtype.devices import detect_one

    facts = detect_one("cpu")
    return f"{facts.name} ({facts.capability})"
