"""The virtual environment of another tool."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from safe_dtype.integrations.optimum import environment, pins_of
from safe_dtype.integrations.optimum.virtual_environment import MARKER, folder_of, python_of, run_python

from safe_dtype.errors import EnvironmentNotFitError

VIA = "optimum-onnx"


def test_pins() -> None:
    """Torch and onnxruntime are those of this process, optimum and transformers the last that go together."""
    pins = pins_of(VIA)
    assert {"optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6"} < set(pins)
    assert f"torch=={torch.__version__.partition('+')[0]}" in pins
    assert all("+" not in one for one in pins), "an index of its own has these"


def test_unknown_via() -> None:
    """Another way to export is refused with those that there are."""
    with pytest.raises(EnvironmentNotFitError, match="--via takes optimum-onnx"):
        environment("optimum-tflite")


@pytest.mark.slow
def test_environment_that_cannot_be_made(no_index: Path) -> None:
    """Without an index the error has what pip said, pip's log stays, and nothing that looks complete is left."""
    told: list[str] = []
    with pytest.raises(EnvironmentNotFitError) as caught:
        environment(VIA, progress=told.append)
    assert "No matching distribution found for optimum-onnx==0.1.0" in str(caught.value)
    assert "pip config list" in str(caught.value)
    assert len(told) == 1
    assert not [one for one in no_index.iterdir() if one.is_dir()]
    assert folder_of(VIA).with_suffix(".log").exists()


def test_no_place_for_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be written is said to be one, with the setting that moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentNotFitError, match="set SAFE_DTYPE_CACHE"):
        environment(VIA)


def test_environment_is_made_once(no_index: Path) -> None:
    """A complete one is taken as it is, without pip."""
    folder = folder_of(VIA)
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).touch()
    (folder / MARKER).write_text(json.dumps({"pins": list(pins_of(VIA))}))
    told: list[str] = []
    assert environment(VIA, progress=told.append) == folder
    assert not told


@pytest.mark.parametrize("marker", ["", '{"pins": ["transformers==1"]}'], ids=["interrupted", "of-other-packages"])
def test_environment_that_is_not_complete(marker: str, no_index: Path) -> None:
    """One without its marker, or with another, is not used."""
    folder = folder_of(VIA)
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).touch()
    (folder / MARKER).write_text(marker)

    def stop(text: str) -> None:
        raise InterruptedError(text)

    with pytest.raises(EnvironmentNotFitError, match="making an environment"):
        environment(VIA, progress=stop)


def test_other_python_is_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that this process was told to look for are not seen there; the user's settings for pip are."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIP_TIMEOUT", "77")
    code = f"import os, sys; print({str(tmp_path)!r} in sys.path, os.environ['PIP_TIMEOUT'])"
    status = run_python(Path(sys.executable), "-c", code, log=tmp_path / "log", end=time.monotonic() + 30)
    assert (status, (tmp_path / "log").read_text().split()) == (0, ["False", "77"])


def test_other_python_is_stopped(tmp_path: Path) -> None:
    """At its time limit it is ended, and what it had said is kept."""
    code = "import time; print('begun', flush=True); time.sleep(60)"
    end = time.monotonic() + 2
    assert run_python(Path(sys.executable), "-c", code, log=tmp_path / "log", end=end) is None
    assert (tmp_path / "log").read_text() == "begun\n"
