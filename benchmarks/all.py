"""Every benchmark, one after another: about two hours and a half. Results and plots go to `benchmarks/results/`.

    python benchmarks/all.py

The machine should do nothing else meanwhile. Each script can be run alone, and says what it measures.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "startup",
    "loading",
    "loading --later --name loading_later",
    "routes",
    "rows",
    "layers_together layers_together",
    "generation",
    "profile_token",
    "attention",
    "predictor",
    "guard",
    "audit",
    "architectures",
    "rescalings",
    "rescue",
    "optimize",
    "restarts",
    "recovery",
    "training",
    "training_loss",
    "training_memory",
    "ranks vote",
    "ranks consensus",
    "ranks store",
    "ranks simulate",
)

if __name__ == "__main__":
    for script in SCRIPTS:
        name, *arguments = script.split()
        subprocess.run([sys.executable, HERE / f"{name}.py", *arguments], check=True)
