"""Optimum gets an environment of its own, the task in its words, and a config that its transformers understands."""

from __future__ import annotations

import subprocess
import sys


def test_starts_without_torch() -> None:
    """Importing the package imports no torch: a parent of attempts does without."""
    code = "import sys, safe_dtype.integrations.optimum; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
