"""An export by optimum: what is refused, and the time limit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safe_dtype.integrations.optimum import Order, export, pins_of
from safe_dtype.integrations.optimum.virtual_environment import MARKER, folder_of, python_of

from safe_dtype.errors import NotOptimizableError
from safe_dtype.facts import FLOAT32

VIA = "optimum-onnx"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links to a Python")


@pytest.fixture
def own_python(no_index: Path) -> None:
    """Let this Python, which has no optimum, stand for the environment."""
    folder = folder_of(VIA)
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).symlink_to(sys.executable)
    (folder / MARKER).write_text(json.dumps({"pins": list(pins_of(VIA))}))


def model_in(folder: Path, **config: object) -> Path:
    """Return a new folder with a config alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.usefixtures("own_python")
def test_time_limit(tmp_path: Path) -> None:
    """An export that is too slow is stopped, with the class and the task in the error; only its log stays."""
    model = model_in(tmp_path / "model", architectures=["BertModel"])
    with pytest.raises(NotOptimizableError) as caught:
        export(Order(model, "feature-extraction", FLOAT32), tmp_path / "out", seconds=0.0)
    assert caught.value.problem == "optimum's export of BertModel as feature-extraction stopped after 0 s"
    assert f"see {tmp_path / 'out' / 'optimum.log'}" in caught.value.advice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["optimum.log"]


@pytest.mark.usefixtures("own_python")
def test_unknown_class(tmp_path: Path) -> None:
    """A model whose class nobody names is refused before anything is written."""
    with pytest.raises(NotOptimizableError, match="names no class"):
        export(Order(model_in(tmp_path / "model"), "fill-mask", FLOAT32), tmp_path / "out", seconds=60)
    assert not (tmp_path / "out").exists()
