"""`safe-dtype rescue`, run as users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from engineered import saved

from safe_dtype.cli import cli

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3"


def run(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["rescue", *map(str, arguments)])


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that overflows float16."""
    return saved("gemma3", tmp_path_factory.mktemp("gemma3"))


def test_it_says_what_it_takes(gemma: Path) -> None:
    """The gauge, its moves and the drift; status 0, for float16 is safe with that."""
    result = run(gemma)
    assert result.exit_code == 0
    assert "rescaled exactly: residual" in result.stdout
    bits = re.search(r"^  residual 2\^-(\d+)$", result.stdout, re.MULTILINE)
    assert bits is not None
    assert f"output of model.layers.*.post_feedforward_layernorm 2^-{bits[1]} (4)" in result.stdout
    assert result.stdout.rstrip().endswith("float16 is safe here.")


def test_json(gemma: Path) -> None:
    """The same for programs."""
    found = json.loads(run(gemma, "--format", "json").stdout)
    assert found["does"] is True
    assert found["peak"] > 65504 > found["left"]
    assert found["rescale"]["shifts"][0]["gauge"] == "residual"
    assert found["drift"]["kl_mean"] < 0.02


def test_a_limit_that_it_exceeds(gemma: Path) -> None:
    """Finite and too far off is not rescued: status 3, with the figure."""
    result = run(gemma, "--max-drift", "1e-9")
    assert result.exit_code == 3
    assert "NOT in float16: mean KL is" in result.stdout


def test_nothing_needed() -> None:
    """A checkpoint whose activations fit is not rescaled."""
    result = run(TINY)
    assert result.exit_code == 0
    assert "rescaled" not in result.stdout


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    """It is measured on that text, anew, and remembered."""
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 30, encoding="utf-8")
    before = json.loads(run(TINY, "--format", "json").stdout)
    found = json.loads(run(TINY, "--text", text, "--format", "json").stdout)
    assert found["drift"]["positions"] != before["drift"]["positions"] or found["peak"] != before["peak"]
    assert json.loads(run(TINY, "--format", "json").stdout) == found


def test_plot(gemma: Path, tmp_path: Path) -> None:
    """The picture has two bars for every block."""
    assert run(gemma, "--plot", tmp_path / "range.svg").exit_code == 0
    picture = ElementTree.parse(tmp_path / "range.svg").getroot()
    rows = [group for group in picture.iter("{http://www.w3.org/2000/svg}g") if group.get("class") == "row"]
    assert [len(row.findall("{http://www.w3.org/2000/svg}rect")) for row in rows] == [2] * 4


def test_made_in_float16(tmp_path: Path) -> None:
    """There is nothing to rescue in a model that was made in float16."""
    import torch

    folder = saved("llama", tmp_path, dtype=torch.float16)
    result = run(folder)
    assert result.exit_code == 1
    assert "made in float16" in str(result.exception)
