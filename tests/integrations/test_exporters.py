"""Integrations tell the optimizer what they add to it: it imports none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safe_dtype.integrations.optimum import VIAS

import safe_dtype
from safe_dtype.errors import EnvironmentNotFitError
from safe_dtype.optimizing.exporters import exporter_named, exporter_names


@pytest.mark.parametrize(
    "start", ["from safe_dtype import optimize", pytest.param("import safe_dtype.cli", marks=pytest.mark.slow)]
)
def test_registered(start: str) -> None:
    """Whoever starts from the package or from the command finds every exporter; none is imported before it is asked for."""
    check = (
        f"import sys; {start}; from safe_dtype.optimizing.exporters import exporter_names, exporter_named;"
        "assert 'safe_dtype.integrations.optimum' not in sys.modules;"
        "print(*exporter_names(), exporter_named('optimum-onnx').attempt_via.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["optimum-onnx", "safe_dtype.integrations.optimum.attempting"], done.stderr


def test_names() -> None:
    """All that the integration has is registered, whatever others are beside it."""
    assert set(VIAS) <= set(exporter_names())
    assert exporter_named(VIAS[0]).__name__ == "safe_dtype.integrations.optimum"


def test_unknown(tmp_path: Path) -> None:
    """A name that nobody registered is refused before anything is written."""
    with pytest.raises(EnvironmentNotFitError, match=r"called 'nothing'.*--via takes optimum-onnx"):
        safe_dtype.optimize(tmp_path, out=tmp_path / "out", form="onnx", via="nothing")
    assert not (tmp_path / "out").exists()
