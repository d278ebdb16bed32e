"""The weights of a model as its files hold them: by its own names, proven, and only from the files that were loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import TINY

from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM
from safe_dtype.facts import Rows
from safe_dtype.models.original_weights import OriginalWeights
from safe_dtype.rescaling.folding.underflow import multiplied

BF16, FP32 = torch.bfloat16, torch.float32

pytestmark = pytest.mark.filterwarnings("ignore:bfloat16 was asked for", "ignore:float16 was asked for")

NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint in one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def proven(model: Any) -> dict[str, torch.Tensor | None]:
    """Return what each parameter of `model` was, where it still is what was loaded."""
    with OriginalWeights(model) as original:
        return {name: original.unchanged(name, one.data) for name, one in model.named_parameters()}


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_architecture(name: str, tmp_path: Path) -> None:
    """Whatever transformers renames, splits or merges: what is proven is what a load in float32 gives."""
    folder = TINY[name].save(tmp_path, FP32)
    model = SafeAutoModel.from_pretrained(folder, dtype=BF16)
    wanted = dict(type(model).from_pretrained(folder, dtype=FP32).named_parameters())
    for own, stored in proven(model).items():
        assert stored is not None, own
        assert stored.dtype == FP32
        assert torch.equal(stored, wanted[own]), own


@pytest.mark.parametrize("options", [{"max_shard_size": "12KB"}, {"variant": "fp32"}], ids=["shards", "variant"])
def test_several_files(options: dict[str, Any], tmp_path: Path) -> None:
    """Shards, a subfolder and a variant are found as transformers finds them."""
    TINY["qwen3"].save(tmp_path / "part", FP32, **options)
    places = {"subfolder": "part", "variant": options.get("variant")}
    model = SafeAutoModelForCausalLM.from_pretrained(tmp_path, dtype=BF16, **places)
    if "max_shard_size" in options:
        assert len(list((tmp_path / "part").glob("*.safetensors"))) >= 3
    assert None not in proven(model).values()


def test_pickles(tmp_path: Path) -> None:
    """PyTorch's own files are mapped; one of the old format cannot be, and the problem says so."""
    TINY["qwen3"].save(tmp_path, FP32)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for is_new in (True, False):
        torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=is_new)
        model = SafeAutoModelForCausalLM.from_pretrained(tmp_path, dtype=BF16)
        with OriginalWeights(model) as original:
            stored = original.unchanged(NORM, model.model.norm.weight)
            assert original.loses(NORM, BF16)
            assert (stored is not None) == is_new
            assert ("old format" in str(original.problems)) == (not is_new)


def test_weights_in_memory(tmp_path: Path) -> None:
    """Weights passed as `state_dict` have no files, and the problem says so."""
    folder = TINY["qwen3"].save(tmp_path, FP32)
    config = transformers.AutoConfig.from_pretrained(folder)
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    model = SafeAutoModel.from_pretrained(None, config=config, state_dict=weights, dtype=BF16)
    with OriginalWeights(model) as original:
        assert original.loses(NORM, BF16)
        assert original.unchanged(NORM, model.model.norm.weight) is None
        assert "state_dict" in str(original.problems)


def test_only_what_is_rounded(tmp_path: Path) -> None:
    """Which tensors lose bits is known one by one, from their headers."""
    folder = TINY["qwen3"].save(tmp_path, BF16)
    rewrite(folder, lambda tensors: tensors.update({NORM: torch.rand(32) + 0.5}))
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    with OriginalWeights(model) as original:
        assert {name for name, _ in model.named_parameters() if original.loses(name, BF16)} == {NORM}


def test_one_number_tells(tmp_path: Path) -> None:
    """The bits are compared: NaN is NaN, and 0.0 is not -0.0."""
    folder = TINY["qwen3"].save(tmp_path, FP32)

    def odd(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM][:3] = torch.tensor([float("nan"), -0.0, 0.1])

    rewrite(folder, odd)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    norm = model.model.norm.weight
    assert proven(model)[NORM] is not None
    norm.data[1] = 0.0
    assert proven(model)[NORM] is None
    norm.data[1] = -0.0
    assert proven(model)[NORM] is not None
    norm.data[0] = 1.0
    assert proven(model)[NORM] is None


def other_checkpoint(folder: Path) -> None:
    """Put another model of the same shape there."""
    other = TINY["qwen3"].make().to(FP32)
    other.save_pretrained(folder.parent / "other")
    (folder.parent / "other" / "model.safetensors").replace(folder / "model.safetensors")


def same_bits_in_bfloat16(folder: Path) -> None:
    """Write other numbers that are the same ones when rounded."""
    rewrite(folder, lambda tensors: tensors.update({name: one.bfloat16().float() for name, one in tensors.items()}))


def cut_short(folder: Path) -> None:
    """Truncate the file."""
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(2000)


def without_a_tensor(folder: Path) -> None:
    """Take a tensor away."""
    rewrite(folder, lambda tensors: tensors.pop(NORM))


def copied_times(folder: Path) -> None:
    """Replace a file by another one with its size and its time of modification."""
    file = folder / "model.safetensors"
    status = file.stat()
    same_bits_in_bfloat16(folder)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def gone(folder: Path) -> None:
    """Remove the folder."""
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "change", [other_checkpoint, same_bits_in_bfloat16, cut_short, without_a_tensor, copied_times, gone]
)
def test_what_lies_there_now_is_not_believed(change: Callable[[Path], None], tmp_path: Path) -> None:
    """A file that was replaced, written to, cut short or removed gives nothing, raises nothing, and is named."""
    folder = TINY["qwen3"].save(tmp_path / "model", FP32)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    change(folder)
    # What transformers maps of a file that is changed in place is its affair: here the weights are the model's own.
    with OriginalWeights(model) as original:
        for name in weights:
            assert original.tensor(name) is None, name
        assert original.problems


def test_changed_while_it_is_read(tmp_path: Path) -> None:
    """A file that is written to between two tensors gives no more of them."""
    folder = TINY["qwen3"].save(tmp_path, FP32)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    with OriginalWeights(model) as original:
        assert original.tensor(NORM) is not None
        cut_short(folder)
        assert original.tensor(HEAD) is None
        assert original.problems == ("model.safetensors ends early",)


def test_another_folder_to_work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is that of the time of loading."""
    for place in ("here", "there"):
        TINY["qwen3"].save(tmp_path / place / "model", FP32)
    rewrite(tmp_path / "there" / "model", lambda tensors: tensors[NORM].add_(1e-4))
    monkeypatch.chdir(tmp_path / "here")
    model = SafeAutoModelForCausalLM.from_pretrained("model", dtype=BF16)
    monkeypatch.chdir(tmp_path / "there")
    stored = proven(model)[NORM]
    assert stored is not None
    assert torch.equal(stored, load_file(tmp_path / "here" / "model" / "model.safetensors")[NORM])


def test_a_link_that_is_moved(tmp_path: Path) -> None:
    """A folder that is a link is the one that it led to."""
    for place in ("one", "two"):
        TINY["qwen3"].save(tmp_path / place, FP32)
    (tmp_path / "now").symlink_to("one")
    model = SafeAutoModelForCausalLM.from_pretrained(tmp_path / "now", dtype=BF16)
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("two")
    assert proven(model)[NORM] is not None


def test_of_adapters(tmp_path: Path) -> None:
    """Weights that PEFT has wrapped are still known by their files; what it adds is of none."""
    peft = pytest.importorskip("peft")
    folder = TINY["qwen3"].save(tmp_path, FP32)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    with OriginalWeights(wrapped) as original:
        for name, parameter in wrapped.named_parameters():
            assert (original.unchanged(name, parameter.data) is not None) == ("lora" not in name), name
            assert original.loses(name, BF16) == ("lora" not in name)


def test_a_part_of_another_model(tmp_path: Path) -> None:
    """A model that was loaded by itself and is a part of another one is known by its own files."""
    folder = TINY["bert"].save(tmp_path, FP32)
    whole = torch.nn.Sequential(torch.nn.Linear(2, 2), SafeAutoModel.from_pretrained(folder, dtype=BF16))
    with OriginalWeights(whole) as original:
        for name, parameter in whole.named_parameters():
            assert (original.unchanged(name, parameter.data) is not None) == name.startswith("1."), name


def test_moved_by_powers_of_two(tmp_path: Path) -> None:
    """A weight that a rescale has multiplied is proven with its exponents, and comes back without them."""
    folder = TINY["qwen3"].save(tmp_path, FP32)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    weight = model.model.layers[0].mlp.down_proj.weight
    stored = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    exponents = {Rows(0, 0.0, 0.5): -3}
    weight.data = multiplied(stored, exponents).half()
    assert torch.equal(weight[:16], (stored[:16] / 8).half())
    assert torch.equal(weight[16:], stored[16:].half())
    with OriginalWeights(model) as original:
        name = "model.layers.0.mlp.down_proj.weight"
        assert original.unchanged(name, weight) is None
        again = original.unchanged(name, weight, exponents)
    assert again is not None
    assert torch.equal(again, stored)
