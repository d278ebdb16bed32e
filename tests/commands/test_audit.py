"""The command `safe-dtype audit`."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch
from command_run import Run

from safe_dtype.checkpoints import audit
from safe_dtype.facts import Where


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Return a checkpoint of 60 layers, of which one has two weights that are too large, and another a NaN."""
    torch.manual_seed(0)
    tensors = {
        f"layers.{layer}.{part}.weight": (torch.randn(4, 8) * 0.02).bfloat16()
        for layer in range(60)
        for part in ("up<&>", *(f"part_{one}" for one in "abcdefghijklmnopqrstuvwxyz"))
    }
    tensors["layers.7.part_b.weight"][1, 2] = 81_920.0
    tensors["layers.7.part_b.weight"][0, 0] = -70_144.0
    tensors["layers.9.part_c.weight"][0, 0] = float("nan")
    tensors["positions"] = torch.arange(4)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give tables the room for whole names, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "140")


def test_fits(run: Run, tiny_qwen3: Path) -> None:
    """The verdict comes first, then one row for each place in the layers; status 0."""
    done = run("audit", tiny_qwen3)
    assert done.returncode == 0, done.stderr
    assert f"{tiny_qwen3} (bfloat16): every weight fits float16;" in " ".join(done.stdout.split())
    assert sum("model.layers.*.mlp.up_proj.weight" in line for line in done.stdout.splitlines()) == 1


def test_counts_are_torch_s(run: Run, tiny_qwen3: Path) -> None:
    """The totals in the JSON are what torch's conversion does to the same weights."""
    total = json.loads(run("audit", tiny_qwen3, "--format", "json").stdout)["total"]
    files = sorted(tiny_qwen3.glob("*.safetensors"))
    weights = torch.cat([one.flatten() for file in files for one in safetensors.torch.load_file(file).values()])
    assert total["elements"] == weights.numel()
    assert total["inexact"] == int((weights.half().float() != weights.float()).sum()) > 0
    assert total["largest"] == weights.float().abs().max()


def test_overflow(run: Run, overflowing: Path) -> None:
    """Status 3; the group that overflows comes first, and its tensors are named; so are NaN and what is no float."""
    done = run("audit", overflowing)
    assert done.returncode == 3
    said = " ".join(done.stdout.split())
    assert "2 weights in 1 of 1620 tensors overflow float16: they reach 81920, and it ends at 65504" in said
    rows = [line for line in done.stdout.splitlines() if "layers.*." in line]
    assert rows[0].split()[:4] == ["layers.*.part_b.weight", "60", "1,920", "2"]
    assert "overflows: layers.7.part_b.weight, 2 weights, up to 81920" in said
    assert "not finite as saved: layers.9.part_c.weight, 0 infinite, 1 NaN" in said
    assert "not looked at: 1 tensors in int64" in said


def test_many_groups(run: Run, overflowing: Path) -> None:
    """Of many groups the first twenty are shown, and the rest are counted."""
    done = run("audit", overflowing)
    assert sum("layers.*." in line for line in done.stdout.splitlines()) == 20
    assert "and 7 rows more" in done.stdout


def test_json(run: Run, overflowing: Path) -> None:
    """The JSON has every tensor, with its counts, its histogram and its room to scale; status 3 here as well."""
    done = run("audit", overflowing, "--format", "json")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert (found["schema"], found["fits"], len(found["tensors"]), len(found["left_alone"])) == (1, False, 1620, 1)
    (bad,) = [one for one in found["tensors"] if one["overflowing"]]
    assert bad["name"] == "layers.7.part_b.weight"
    assert (bad["overflowing"], bad["largest"], bad["bits_up"]) == (2, 81920, -1)
    assert sum(bad["exponents"].values()) == bad["elements"] == 32


def test_plot(run: Run, overflowing: Path, tmp_path: Path) -> None:
    """The picture is XML, with one row for each group, and names that need escaping are escaped."""
    picture = tmp_path / "ranges.svg"
    assert run("audit", overflowing, "--plot", picture).returncode == 3
    root = ElementTree.parse(picture).getroot()
    rows = [one for one in root.iter("{http://www.w3.org/2000/svg}g") if one.get("class") == "group"]
    labels = [one.findtext("{http://www.w3.org/2000/svg}text") for one in rows]
    assert len(rows) == 27
    assert "60x layers.*.up<&>.weight" in labels


def test_bars_lie_in_their_lines(run: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """In the picture, the bulk of a group lies between its smallest and its largest weight."""
    run("audit", tiny_qwen3, "--plot", tmp_path / "ranges.svg")
    svg = "{http://www.w3.org/2000/svg}"
    rows = list(ElementTree.parse(tmp_path / "ranges.svg").getroot().iter(f"{svg}g"))
    assert rows
    for row in rows:
        line, bar = row.find(f"{svg}path"), row.find(f"{svg}rect")
        assert line is not None
        assert bar is not None
        start, end = line.get("d", "").removeprefix("M").split("H")
        left = float(bar.get("x", "nan"))
        assert float(start.split()[0]) <= left
        assert left + float(bar.get("width", "nan")) <= float(end) + 2  # a bar is at least two units wide


def test_integers_alone(run: Run, tmp_path: Path) -> None:
    """Where no tensor is a float, the verdict says so."""
    safetensors.torch.save_file({"ids": torch.arange(3)}, tmp_path / "model.safetensors")
    done = run("audit", tmp_path)
    assert done.returncode == 0
    assert "there are no weights to judge" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("./no/such/folder",), ("no such file or folder",), id="no-such-folder"),
        pytest.param(("nobody/nothing",), ("nobody/nothing",), id="no-such-repository"),
        pytest.param(("MODEL", "--plot", "./no/such/folder/a.svg"), ("a.svg",), id="no-place-for-the-plot"),
        pytest.param(("MODEL/README.md",), ("no safetensors file",), id="no-weights"),
    ],
)
def test_clear_errors(run: Run, arguments: tuple[str, ...], words: tuple[str, ...], tiny_qwen3: Path) -> None:
    """Bad input is one clear message on stderr and a non-zero exit that is not 3, without a traceback."""
    done = run("audit", *(one.replace("MODEL", str(tiny_qwen3)) for one in arguments))
    assert done.returncode not in (0, 3)
    assert "Traceback" not in done.stderr
    assert not done.stdout
    for word in words:
        assert word in done.stderr


def test_notebook(overflowing: Path) -> None:
    """In a notebook an audit is its verdict, the picture and the table; names that are HTML stay text."""
    shown = audit(Where(str(overflowing)))._repr_html_()
    assert "overflow float16: they reach 81920" in shown
    assert shown.count("<svg") == 1
    assert "layers.7.part_b.weight" in shown
    assert "up&lt;&amp;&gt;" in shown
    assert "up<&>" not in shown
