"""A rescaled model that is pickled is the plain one: it is read, and computes the same, where safe_dtype is not installed."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from engineered import KINDS, engineered, prompts, saved
from rescaling.folding.changes import FAMILIES, blocks, is_near, rescued, results
from torch import Tensor, nn

from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM
from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.rescaling import rescaled_of

WITHOUT_US = """
import sys
sys.modules["safe_dtype"] = None
import torch
for file in sys.argv[1:]:
    model, batch = torch.load(file, weights_only=False)
    with torch.no_grad():
        torch.save((model(**batch, use_cache=False).logits, model.dtype, model.config.dtype), file)
"""


NEAR = {"rtol": 0, "atol": 2.0**-18}  # what float16 loses of a model that was made here, and has no files


@dataclass(frozen=True)
class ReadElsewhere:
    """Models of one family by what was made of them; of each what it computes, its dtype and its config's elsewhere."""

    family: str
    source: Path
    models: dict[str, Any]
    results: dict[str, tuple[Tensor, torch.dtype, torch.dtype]]


@pytest.fixture(scope="module", params=["qwen3", pytest.param("gemma2", marks=pytest.mark.slow)])
def read_without_us(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReadElsewhere:
    """Save what MADE makes of a model, and read all of it in one process where safe_dtype is not installed."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    source = saved(family, folder)
    models = {
        name: make(SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16")) for name, make in MADE.items()
    }
    files = [folder / f"{name}.pt" for name in models]
    for model, file in zip(models.values(), files, strict=True):
        torch.save((model, prompts(family, count=1, tokens=24, seed=3)[0]), file)
    subprocess.run([sys.executable, "-c", WITHOUT_US, *map(str, files)], check=True, timeout=240)
    return ReadElsewhere(
        family, source, models, {name: torch.load(file) for name, file in zip(models, files, strict=True)}
    )


def _hook(_module: nn.Module, _args: Any, _output: Any) -> None:
    """Nothing."""


def taken_back(model: Any) -> Any:
    """Return the model after its rescale was taken back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        blocks(model)[1].register_forward_hook(_hook).remove()
    assert rescaled_of(model) is None
    return model


def written(model: Any) -> Any:
    """Return the model with a weight multiplied in place, that a rescale has not moved."""
    with torch.no_grad():
        blocks(model)[1].input_layernorm.weight.mul_(1.5)
    return model


MADE: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda model: model,
    "copied": copy.deepcopy,
    "taken back": taken_back,
    "changed": written,
}


@pytest.mark.parametrize("name", MADE)
def test_read_without_us(read_without_us: ReadElsewhere, name: str) -> None:
    """It has the dtype of its checkpoint, and results that are as near as those of that dtype are."""
    model, family = read_without_us.models[name], read_without_us.family
    logits, dtype, in_config = read_without_us.results[name]
    log_probabilities = logits.float().log_softmax(-1)
    assert dtype == in_config == (model.dtype if name == "taken back" else torch.bfloat16)
    if name == "taken back":
        assert torch.equal(log_probabilities, results(model, family))
        return
    truth = KINDS[family].auto.from_pretrained(read_without_us.source, dtype=dtype).eval()
    assert torch.equal(log_probabilities, results(written(truth) if name == "changed" else truth, family))
    assert rescaled_of(model) is not None
    assert is_near(results(model, family), results(truth.float(), family))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit(family: str) -> None:
    """Read where we are it is the plain model as well, bit for bit, ties included; the one that was pickled stays."""
    model = rescued(family)
    before = {name: one.clone() for name, one in model.named_parameters()}
    read, plain = pickle.loads(pickle.dumps(model)), engineered(family)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    assert rescaled_of(read) is None
    assert [name for name, _ in read.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for name, one in plain.named_parameters():
        torch.testing.assert_close(read.get_parameter(name).float(), one, **NEAR)
    for module in read.modules():
        assert type(module._modules) is dict
        ours = [key for key in module.__dict__ if "safe_dtype" in key or key.startswith(("__reduce", "__deepcopy"))]
        assert not ours
    assert is_near(results(read.float(), family), results(plain, family))


def test_a_copy_is_pickled_itself() -> None:
    """What is changed in a copy is in its pickle, and the model that it is a copy of can be gone."""
    model = rescued("qwen3")
    twin = copy.deepcopy(model)
    del model
    gc.collect()
    with torch.no_grad():
        twin.model.norm.weight.mul_(3.0)
    read = pickle.loads(pickle.dumps(twin))
    torch.testing.assert_close(
        read.model.norm.weight.float(), engineered("qwen3").model.norm.weight * 3, rtol=0.01, atol=0
    )


@pytest.mark.parametrize("family", ["t5", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_kept_in_float32_beside_float16_alone(family: str, tmp_path: Path) -> None:
    """What the class keeps in float32 in a model in float16, and not in bfloat16, is in the dtype of the checkpoint."""
    source = saved(family, tmp_path)
    model = SafeAutoModel.from_pretrained(source, dtype="float16")
    assert rescaled_of(model) is not None
    plain, pickled = KINDS[family].auto.from_pretrained(source, dtype="auto"), pickle.loads(pickle.dumps(model))
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(pickled.state_dict()[name], expected, rtol=0, atol=0, msg=name)


def test_while_another_thread_runs_it(tmp_path: Path) -> None:
    """A step that runs meanwhile has hooks on modules that cannot be pickled: it is waited for."""
    model = SafeAutoModelForCausalLM.from_pretrained(saved("llama", tmp_path), dtype="float16")
    batch = prompts("llama", count=1, tokens=24, seed=3)[0]
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            model(**batch)

    running = threading.Thread(target=run)
    running.start()
    try:
        pickled = [pickle.dumps(part) for part in (model, model.model, model.model.layers[1]) for _ in range(3)]
    finally:
        ended.set()
        running.join()
    assert len(pickled) == 9
    assert rescaled_of(model) is not None


def test_nothing_of_ours_is_named() -> None:
    """No class or function of ours stands in the pickle."""
    model = rescued("gemma2")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert b"safe_dtype" not in buffer.getvalue()
    assert b"safe_dtype" not in pickle.dumps(model)


def test_a_part() -> None:
    """A block is pickled with weights of its own size, as it is copied."""
    block = blocks(rescued("qwen3"))[1]
    data = pickle.dumps(block)
    assert b"safe_dtype" not in data
    for name, one in blocks(engineered("qwen3"))[1].named_parameters():
        torch.testing.assert_close(pickle.loads(data).get_parameter(name).float(), one, **NEAR)


def test_within_another() -> None:
    """Inside of what PEFT wraps around it, with its adapter, and inside of any other module."""
    config = peft.LoraConfig(target_modules=["down_proj"], r=2, init_lora_weights=False)
    torch.manual_seed(0)
    plain = peft.get_peft_model(engineered("llama"), config).eval()
    torch.manual_seed(0)
    model = peft.get_peft_model(rescued("llama"), config).eval()
    data = pickle.dumps(nn.ModuleList([model]))
    assert b"safe_dtype" not in data
    (read,) = pickle.loads(data)
    assert is_near(results(read.float(), "llama"), results(plain, "llama"))
    assert is_near(results(model, "llama"), results(plain, "llama"))
