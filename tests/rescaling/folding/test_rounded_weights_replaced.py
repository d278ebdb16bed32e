"""Another checkpoint lies where the weights were loaded from: none of it is taken over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rescaling.folding.rounded import FP32, load, reference, step_down, weights
from safetensors.torch import load_file, save_file
from tiny_models import TINY

from safe_dtype import report

pytestmark = pytest.mark.filterwarnings("ignore:bfloat16 was asked for", "ignore:float16 was asked for")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in float32, in three shards, its head tied to its embedding."""
    made = TINY["qwen3"].save(tmp_path / "model", FP32, max_shard_size="14KB")
    assert len(list(made.glob("*.safetensors"))) >= 3
    return made


def other_weights(folder: Path) -> None:
    """Put another model of the same shape there."""
    torch.manual_seed(1)
    for file in folder.glob("*.safetensors"):
        save_file({name: torch.randn_like(one) for name, one in load_file(file).items()}, file)


def other_vocabulary(folder: Path) -> None:
    """Give the embedding more rows."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: torch.cat([one, one]) for name, one in tensors.items()}, file)


def one_tensor_less(folder: Path) -> None:
    """Take a tensor out of each file."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        tensors.pop(next(iter(tensors)))
        save_file(tensors, file)


def truncated(folder: Path) -> None:
    """Cut the files short."""
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[:-100])


def no_shard(folder: Path) -> None:
    """Remove one shard."""
    next(folder.glob("*.safetensors")).unlink()


def other_index(folder: Path) -> None:
    """Leave no index that can be read."""
    (folder / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize("change", [other_weights, other_vocabulary, one_tensor_less, truncated, no_shard])
def test_another_checkpoint_lies_there(
    change: Callable[[Path], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was put in the place of the files is not taken: the rounded weights are cast, and the log says so."""
    model = load(folder)
    before = weights(model)
    change(folder)
    step_down(model)
    for name, now in model.named_parameters():
        assert torch.equal(now, before[name]), name
    assert f"{len(before)} rounded weights cannot be read again" in caplog.text
    assert len(report(model).events) == 1


def huge_config(folder: Path) -> None:
    """Describe a model that fits into no memory."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2**20, "num_hidden_layers": 10**6}))


@pytest.mark.parametrize("change", [huge_config, other_index])
def test_only_the_weights_are_read_again(change: Callable[[Path], None], folder: Path) -> None:
    """What else lies there is of no account: no model is built anew."""
    wanted = reference(folder)
    model = load(folder)
    change(folder)
    step_down(model)
    for name, now in model.named_parameters():
        assert torch.equal(now, wanted[name]), name


def test_another_working_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `chdir` a relative path is not that of another model."""
    wanted = reference(folder)
    monkeypatch.chdir(tmp_path)
    model = load(Path("model"))
    (tmp_path / "elsewhere").mkdir()
    TINY["qwen3"].make().save_pretrained(tmp_path / "elsewhere" / "model")
    monkeypatch.chdir(tmp_path / "elsewhere")
    step_down(model)
    for name, now in model.named_parameters():
        assert torch.equal(now, wanted[name]), name
