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
    "routes",
    "generation",
    "predictor",
    "guard",
    "audit",
    "architectures",
    "rescue",
    "optimize",
    "restarts",
    "recovery",
    "training",
    "training_loss",
)

if __name__ == "__main__":
    for script in SCRIPTS:
        subprocess.run([sys.executable, HERE / f"{script}.py"], check=True)
