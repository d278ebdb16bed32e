"""A rescued model is saved in the dtype of its checkpoint, whatever was changed in float16 meanwhile."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from engineered import engineered, saved
from rescaling.folding.changes import blocks, is_near, results
from rescaling.gauges_by_hand import residual
from safetensors.torch import load_file

from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM
from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.facts import Rescale
from safe_dtype.rescaling import Fold, keep_rescaled, rescaled_of
from safe_dtype.rescaling.folding.prove import Effect
from safe_dtype.rescaling.folding.save import save_as_it_was

FAMILIES = ("qwen3", "llama", "gemma2")


def rescued(family: str, folder: Path, **how: Any) -> tuple[Any, Path]:
    """Return the model of a family in float16, rescaled, and where it was loaded from."""
    source = saved(family, folder / "before", **how)
    model = SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16")
    assert rescaled_of(model) is not None
    return model, source


def merged(model: Any) -> Any:
    """Return `model` with a LoRA adapter merged into weights that a rescale moves, and into others."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2, init_lora_weights=False)
    return peft.get_peft_model(model, config).merge_and_unload()


def added(model: Any) -> Any:
    """Return `model` with something added to a weight that no rescale moves."""
    blocks(model)[1].self_attn.q_proj.weight.data.add_(0.03)
    return model


def normed(model: Any) -> Any:
    """Return `model` with other gains: norms may be in float32 in memory."""
    with torch.no_grad():
        blocks(model)[1].input_layernorm.weight.add_(0.07)
    return model


CHANGES: dict[str, Callable[[Any], Any]] = {"merged": merged, "data": added, "norm": normed}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CHANGES)
def test_one_dtype(family: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All tensors are in the dtype that config.json says; what was not changed is what it was, bit for bit."""
    model, source = rescued(family, tmp_path)
    with caplog.at_level(logging.WARNING, "safe_dtype.rescaling"):
        model = CHANGES[name](model)
        model.save_pretrained(tmp_path / "after")
    files, before = load_file(tmp_path / "after" / "model.safetensors"), load_file(source / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "after")
    assert {tensor.dtype for tensor in files.values()} == {config.dtype} == {torch.bfloat16}
    differing = {one for one, tensor in before.items() if not torch.equal(tensor, files[one])}
    touched = ("q_proj", "down_proj") if name == "merged" else ("layers.1.",)
    assert differing
    assert all(any(word in one for word in touched) for one in differing)
    lines = [one.getMessage() for one in caplog.records if "rounded to bfloat16" in one.getMessage()]
    assert len(lines) == 1
    expected = CHANGES[name](engineered(family))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "after", dtype=torch.float32)
    for one, weight in expected.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(one), weight, rtol=2.0**-7, atol=2e-3)


@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_tied_weights_are_saved_once(family: str, tmp_path: Path) -> None:
    """The files have the names that they had: an embedding that is also the head takes its space once."""
    source = saved(family, tmp_path / "before")
    model = SafeAutoModel.from_pretrained(source, dtype="float16")
    assert rescaled_of(model) is not None
    for name, state in (("alone", None), ("passed", model.state_dict(keep_vars=True))):
        model.save_pretrained(tmp_path / name, state_dict=state)
        before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / name))
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[one]) for one, tensor in before.items())


def test_beyond_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    """A number that the checkpoint's dtype does not hold stays in float32, and it is said why."""
    source = saved("qwen3", tmp_path / "before", dtype=torch.float16)
    model = SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16")
    fold = Fold(model)
    fold.move_to(Rescale(((residual(model), 6),)))
    keep_rescaled(model, fold, Effect(bitwise=True), loaded=Rescale(()))
    save_as_it_was(model)
    name = "model.layers.1.mlp.down_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = 3e4
    with pytest.warns(SafeDtypeWarning, match=f"{name} of Qwen3ForCausalLM hold numbers beyond float16"):
        model.save_pretrained(tmp_path / "after")
    files = load_file(tmp_path / "after" / "model.safetensors")
    assert {one for one, tensor in files.items() if tensor.dtype != torch.float16} == {name}
    assert float(files[name][3, 4]) == 3e4 * 64


def test_without_its_files(tmp_path: Path) -> None:
    """Where the files are gone, too."""
    model, source = rescued("qwen3", tmp_path)
    before = load_file(source / "model.safetensors")
    source.rename(tmp_path / "elsewhere")
    added(model).save_pretrained(tmp_path / "after")
    files = load_file(tmp_path / "after" / "model.safetensors")
    assert {tensor.dtype for tensor in files.values()} == {torch.bfloat16}
    near = {"rtol": 0, "atol": 2.0**-16}  # float16 loses what is smaller
    assert sum(not torch.allclose(tensor, files[one], **near) for one, tensor in before.items()) == 1


def test_state_dict_of_the_callers_own(tmp_path: Path) -> None:
    """What the caller has cast on purpose is saved in that dtype."""
    model, _ = rescued("qwen3", tmp_path)
    state = {name: tensor.float() for name, tensor in model.state_dict(keep_vars=True).items()}
    state["model.norm.weight"] += 0.5
    model.save_pretrained(tmp_path / "after", state_dict=state)
    assert load_file(tmp_path / "after" / "model.safetensors")["model.norm.weight"].dtype == torch.float32


class Slow:
    """A folder whose name somebody waits for, while another thread changes the model."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.answered = path, threading.Event(), threading.Event()

    def __fspath__(self) -> str:
        """Return the path, when it is allowed."""
        self.asked.set()
        assert self.answered.wait(60)
        return str(self.path)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_changed_while_another_thread_saves(family: str, tmp_path: Path) -> None:
    """A hook that is put on meanwhile is seen, and what is saved is what was there when saving began."""
    model, source = rescued(family, tmp_path)
    folder = Slow(tmp_path / "after")
    saving = threading.Thread(target=model.save_pretrained, args=(folder,))
    saving.start()
    assert folder.asked.wait(60)
    states: list[torch.Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        blocks(model)[2].register_forward_hook(lambda _module, _args, output: states.append(output))
    assert rescaled_of(model) is None
    found = results(model, family)
    folder.answered.set()
    saving.join()
    assert is_near(found, results(engineered(family), family))
    files, before = load_file(tmp_path / "after" / "model.safetensors"), load_file(source / "model.safetensors")
    assert all(torch.equal(tensor, files[name]) for name, tensor in before.items())
