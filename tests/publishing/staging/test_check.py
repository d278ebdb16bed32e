"""What keeps a staged folder from being published is found in its files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from publishing.variant import BASE, fidelity, settled, staged
from safetensors.torch import load_file, save_file

from safe_dtype.publishing.staging.check import check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that is fit."""
    return staged(tmp_path / "variant")


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_fit(tmp_path: Path, shard: str) -> None:
    """A folder as it was staged has no problems, sharded or whole."""
    assert check(staged(tmp_path / "variant", shard=shard)) == []


def _overwrite(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def _config(key: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        settled(folder)

    return change


def _in_bfloat16(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: one.to(torch.bfloat16) for name, one in weights.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(_overwrite("model.fp16.safetensors", ""), "share one config.json", id="variant-file"),
        pytest.param(_overwrite("model.fp16-00001-of-00002.safetensors", ""), "variant file", id="variant-shard"),
        pytest.param(_overwrite("model.safetensors.index.fp16.json", "{}"), "variant file", id="variant-index"),
        pytest.param(_overwrite("pytorch_model.bin", ""), "not part of this variant", id="pickle"),
        pytest.param(_overwrite("model.onnx", ""), "not part of this variant", id="another-format"),
        pytest.param(_overwrite("notes.txt", ""), "notes.txt is there, and not in safe_dtype.json", id="unknown-file"),
        pytest.param(_overwrite("generation_config.json", "{}"), "changed since it was staged", id="changed"),
        pytest.param(lambda folder: (folder / "plots" / "drift.svg").unlink(), "is not there", id="missing"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), "no weights", id="no-weights"),
        pytest.param(lambda folder: (folder / "README.md").unlink(), "README.md is missing", id="no-card"),
        pytest.param(_overwrite("README.md", "# Mine\n"), "does not say what safe_dtype.json says", id="other-card"),
        pytest.param(_overwrite("safe_dtype.json", "{}"), "cannot be read .KeyError", id="no-schema"),
        pytest.param(_overwrite("safe_dtype.json", '{"schema": "x/1"}'), "schema is 'x/1'", id="other-schema"),
        pytest.param(_in_bfloat16, "headers of the weights hold .* in bfloat16", id="other-headers"),
        pytest.param(_overwrite("model.safetensors", "x" * 99), "no whole header", id="no-header"),
        pytest.param(_config("dtype", "bfloat16"), "config.json says dtype 'bfloat16'", id="config-dtype"),
        pytest.param(_config("safe_dtype", {"needs": "safe_dtype"}), "needs 'safe_dtype'", id="config-needs"),
    ],
)
def test_found(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    """Every way in which files and evidence can disagree has its sentence."""
    (folder / "onnx").mkdir()
    damage(folder)
    found = check(folder)
    assert any(re.search(said, one) for one in found), found


def test_no_dtype_of_no_weights(folder: Path) -> None:
    """Where there are no weights, nothing is said of the dtype of most of them."""
    (folder / "model.safetensors").unlink()
    assert not any("most of the weights" in one for one in check(folder))


def test_index_and_shards(tmp_path: Path) -> None:
    """A shard too few, one too many, and a whole file beside them are three problems."""
    folder = staged(tmp_path / "variant", shard="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[0].rename(folder / "model-00099-of-00099.safetensors")
    (folder / "model.safetensors").write_bytes(shards[1].read_bytes())
    found = "\n".join(check(folder))
    assert f"names {shards[0].name}, which is not there" in found
    assert "model-00099-of-00099.safetensors is named nowhere" in found
    assert "model.safetensors lies beside shards" in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"base": replace(BASE, repo=None)}, "its base is a folder", id="no-base"),
        pytest.param({"base": replace(BASE, repo="/home/me/model")}, "no repository of the Hub", id="path-as-base"),
        pytest.param({"base": replace(BASE, revision="main")}, "no commit", id="branch-as-revision"),
        pytest.param({"base": replace(BASE, license=None)}, "license is not known", id="no-license"),
        pytest.param({"plain": fidelity("transformers", beyond="KL is 1")}, "`needs` is not set", id="plain-is-wrong"),
        pytest.param({"safe_dtype": fidelity("safe_dtype", beyond="KL is 1")}, "safe_dtype computes", id="ours-is-wrong"),
    ],
)  # fmt: skip
def test_not_publishable(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    """What the evidence itself says against it is a problem."""
    assert any(said in one for one in check(staged(tmp_path / "variant", **changes)))


def test_no_card_can_be_made(folder: Path) -> None:
    """Evidence that lacks what the card is to say is a problem, not an empty place on the card."""
    found = json.loads((folder / "safe_dtype.json").read_text())
    del found["device"]["name"]
    (folder / "safe_dtype.json").write_text(json.dumps(found))
    assert any("no card can be made of safe_dtype.json" in one and "name" in one for one in check(folder))


def test_onnx_beside(tmp_path: Path) -> None:
    """An ONNX file in a folder of its own is no stray weight; at the top it is one."""
    folder = staged(tmp_path / "stage")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"a graph")
    settled(folder)
    assert check(folder) == []
    (folder / "onnx" / "model.onnx").rename(folder / "model.onnx")
    assert any("model.onnx holds weights" in one for one in check(folder))


def test_needs_is_fine(tmp_path: Path) -> None:
    """A plain loader that computes something else is no problem where the folder says what it needs."""
    wrong = fidelity("transformers", beyond="some of its 4 outputs hold NaN or infinity")
    assert check(staged(tmp_path / "variant", plain=wrong, needs="safe_dtype")) == []
