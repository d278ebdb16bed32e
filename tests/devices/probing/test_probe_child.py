"""The process of a dangerous measurement."""

from __future__ import annotations

import subprocess
import sys


def test_child_rejects_what_is_no_request() -> None:
    """The child ends with an error on anything but a request."""
    command = [sys.executable, "-m", "safe_dtype.devices.probing.probe_child"]
    done = subprocess.run(command, input="{}", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert not done.stdout
