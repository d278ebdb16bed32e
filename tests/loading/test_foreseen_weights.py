"""What a model's class makes of the weights in the files is foreseen from their headers, and is what happens."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from command_run import Run, run
from safetensors.torch import load_file, save_file

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.errors import CheckpointError
from safe_dtype.loading import Request, foreseen_in_all
from safe_dtype.publishing.staging.stage import stage

__all__ = ["run"]
Saved = Callable[..., Path]


@pytest.fixture
def model(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundled model, to be broken."""
    return Path(shutil.copytree(tiny_qwen3, tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    """Write other values into a config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def said_of(folder: Path) -> list[str]:
    """Return the warnings of what will go wrong."""
    return [failure.warning for failure in foreseen_in_all(Request(str(folder), {}))]


def test_other_shapes(model: Path) -> None:
    """A config that does not go with the files: which weight, both shapes, and how many more. Loading does fail."""
    change_config(model, intermediate_size=64)
    (warning,) = said_of(model)
    assert warning.startswith("loading it will fail: its weights have other shapes than its config.json says: ")
    assert "model.layers.0.mlp.down_proj.weight is [192, 576] in the files and [192, 64] by the config" in warning
    assert "and 11 more differ" in warning
    with pytest.raises(RuntimeError):
        transformers.AutoModelForCausalLM.from_pretrained(model)


def test_tensors_without_a_place(model: Path, run: Run) -> None:
    """What the files hold beyond the config is named, as transformers reports it; the model is whole, and is staged."""
    change_config(model, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    names = [name for shard in model.glob("*.safetensors") for name in load_file(shard)]
    beyond = [name for name in names if re.search(r"layers\.[2-9]\.", name)]
    (failure,) = foreseen_in_all(Request(str(model), {}))
    assert failure.leaves_out
    assert failure.warning.startswith(
        f"it will load, and leave weights out: its files hold {len(beyond)} tensors that Qwen3ForCausalLM has no place for "
        "(model.layers.*.input_layernorm.weight, model.layers.*.mlp.down_proj.weight and 9 more kinds)"
    )
    assert f"warning: {failure.warning}" in " ".join(run("plan", model).stdout.split())
    _, report = transformers.AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert sorted(report["unexpected_keys"]) == sorted(beyond)
    assert stage(model, model.parent / "staged", dtype="float32").folder.is_dir()


def test_class_that_cannot_be_made(model: Path) -> None:
    """A config that its class fails over: transformers' own words, before anything is downloaded or read."""
    change_config(model, num_hidden_layers=9)
    (warning,) = said_of(model)
    assert warning.startswith("loading it will fail: ")
    with pytest.raises(Exception):  # noqa: B017, PT011  (transformers' own, of many classes)
        transformers.AutoModelForCausalLM.from_pretrained(model)


def test_missing_weights(model: Path) -> None:
    """Weights that the files lack load as random numbers: that is a warning of its own, and staging refuses it."""
    weights: dict[str, torch.Tensor] = {}
    for shard in model.glob("*.safetensors"):
        weights |= load_file(shard)
        shard.unlink()
    (model / "model.safetensors.index.json").unlink()
    left = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    save_file(left, model / "model.safetensors", metadata={"format": "pt"})
    (failure,) = foreseen_in_all(Request(str(model), {}))
    assert failure.warning.startswith("it will load, and answer at random: 11 of its weights are not in its files")
    assert "model.layers.*.input_layernorm.weight" in failure.warning
    assert not failure.stops_loading
    with pytest.raises(CheckpointError, match="11 of its weights are not in its files"):
        stage(model, model.parent / "staged", dtype="float32")
    assert not (model.parent / "staged").exists()


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "whisper", "t5", "llava", "segformer", "bert", "mamba"])
def test_nothing_of_a_model_that_is_whole(name: str, saved: Saved, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is foreseen of whole models, whatever transformers renames and merges of theirs; nothing is printed."""
    folder = saved(name)
    capfd.readouterr()
    assert foreseen_in_all(Request(str(folder), {}), reads_text=False) == ()
    assert capfd.readouterr() == ("", "")


def test_takes_no_memory(model: Path) -> None:
    """No weight is made: the random generator is where it was, and so is transformers' log."""
    before = torch.get_rng_state(), transformers.utils.logging.get_verbosity()
    foreseen_in_all(Request(str(model), {}), read_checkpoint(model))
    after = torch.get_rng_state(), transformers.utils.logging.get_verbosity()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


@pytest.mark.parametrize("command", [["plan"], ["optimize", "--dry-run"]], ids=lambda command: command[0])
def test_said_before(command: list[str], run: Run, model: Path) -> None:
    """The commands that load nothing warn of it, and end well."""
    change_config(model, intermediate_size=64)
    done = run(*command, model)
    assert done.returncode == 0
    assert "other shapes than its config.json says" in " ".join(done.stdout.split())
