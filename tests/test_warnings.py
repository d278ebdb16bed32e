"""Every warning that safe_dtype raises names the line of the user's call, however it was reached."""

from __future__ import annotations

import copy
import json
import linecache
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from engineered import engineered, saved
from guarding.generators import DOWN
from optimizing.form_models import Mlp
from optimizing.made import optimized
from rescaling.gauges_by_hand import residual
from tiny_models import TINY

from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM, SafeDtypeWarning, load_optimized, patched
from safe_dtype.facts import Gauge, Move, Part, Rescale
from safe_dtype.loading.auto import SafeAuto
from safe_dtype.rescaling import fold_in, keep_rescaled
from safe_dtype.rescaling.folding.rescale_file import FILE, Stored, write_stored
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
LIE = "config.json"  # is in the warning of a config that names another dtype than the weights have


@contextmanager
def assert_here(text: str) -> Iterator[None]:
    """Assert that a warning with `text` is raised in the block, and that it names a line with the comment `# here`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [one for one in caught if issubclass(one.category, SafeDtypeWarning) and text in str(one.message)]
    assert ours, [str(one.message) for one in caught]
    lines = [linecache.getline(one.filename, one.lineno).rstrip() for one in ours]
    assert {one.filename for one in ours} == {__file__}
    assert all(line.endswith("# here") for line in lines), lines


def in_thread(call: Callable[[], Any]) -> None:
    """Call in a thread of its own."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def tokenizer() -> Any:
    """Return a tokenizer of few words, for a pipeline."""
    return tf.BertTokenizer(vocab={"[UNK]": 0, "a": 1, "[PAD]": 2, "[SEP]": 3, "[CLS]": 4, "[MASK]": 5})


@pytest.fixture
def lying(tmp_path: Path) -> Path:
    """A checkpoint in bfloat16 whose config names float16."""
    folder = TINY["qwen3"].save(tmp_path / "lying", torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return folder


# A plan's own warnings


def test_load(lying: Path) -> None:
    """Loading with an Auto class of ours, or through a function of the user's."""

    def user(source: Path) -> Any:
        return SafeAutoModelForCausalLM.from_pretrained(source)  # here

    with assert_here(LIE):
        SafeAutoModel.from_pretrained(lying)  # here
    with assert_here(LIE):
        user(lying)
    with assert_here(LIE):
        in_thread(lambda: user(lying))


def test_patched(lying: Path) -> None:
    """Loading with transformers' own classes, with a pipeline, and as a decorated function."""

    @patched()
    def user(source: Path) -> Any:
        return tf.AutoModelForCausalLM.from_pretrained(source)  # here

    with assert_here(LIE):
        user(lying)
    with assert_here(LIE):
        in_thread(lambda: user(lying))
    with assert_here(LIE), patched():
        tf.Qwen3ForCausalLM.from_pretrained(lying)  # here
    with assert_here(LIE), patched():
        tf.pipeline("feature-extraction", model=str(lying), tokenizer=tokenizer())  # here


@pytest.mark.slow
def test_run(lying: Path, tmp_path: Path) -> None:
    """A script that `safe-dtype run` starts, and a module of the user's."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import transformers\n\n\ndef main():\n    transformers.AutoModel.from_pretrained({str(lying)!r})\n\n\nmain()\n"
    )
    for arguments in ((str(script),), ("-m", "script")):
        done = subprocess.run(
            [sys.executable, "-m", "safe_dtype.run", *arguments], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}, cwd=tmp_path,
        )  # fmt: skip
        (line,) = [one for one in done.stderr.splitlines() if "SafeDtypeWarning" in one and LIE in one]
        assert line.startswith(f"{script}:5: ")


# What loading finds out


def test_rescale_that_does_not_hold(tmp_path: Path) -> None:
    """A rescale beside the weights that does not fit them, and what the plan without it warns of."""
    folder = TINY["whisper"].save(tmp_path / "model", torch.bfloat16)
    gauge = Gauge("residual", (Move(Part.WEIGHT, "model.nowhere.weight", 1),))
    write_stored(Stored(Rescale(((gauge, 4),)), (), 0.0), folder)
    for text in (FILE, "reads input_features, not text"):
        with assert_here(text):
            SafeAutoModel.from_pretrained(folder, dtype="float16")  # here


def test_float16_that_is_not_reached(tmp_path: Path) -> None:
    """Weights that are offloaded are not rescaled."""
    folder = saved("llama", tmp_path / "model")
    places = {f"model.layers.{place}": "disk" if place == 2 else "cpu" for place in range(4)}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    more = {"device_map": places, "offload_folder": tmp_path / "offload"}
    with assert_here("It is in float32 now"):
        SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16", **more)  # here


class InFull(tf.Qwen3ForCausalLM):
    """A class that loads in float32, whatever it is asked for."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load."""
        return super().from_pretrained(*args, **kwargs).float()


class SafeInFull(SafeAuto):
    """Loads that class."""

    auto_class = InFull


def test_class_that_sets_its_own_dtype(tmp_path: Path) -> None:
    """A class that does not load in the dtype it is asked for."""
    folder = TINY["qwen3"].save(tmp_path, torch.bfloat16)
    with assert_here("sets its own dtype"):
        SafeInFull.from_pretrained(folder, dtype="bfloat16")  # here


# While a model runs


@pytest.fixture
def ordered(tmp_path: Path) -> Any:
    """A guarded model in bfloat16, as ordered."""
    folder = TINY["qwen3"].save(tmp_path, torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)  # of a CPU that is slow in it
        return SafeAutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")


CALLS: dict[str, Callable[[Any], Any]] = {
    "direct": lambda model: model(input_ids=IDS),  # here
    "generate": lambda model: model.generate(IDS, max_new_tokens=2),  # here
    "pipeline": lambda model: tf.pipeline("text-generation", model=model, tokenizer=tokenizer())("a"),  # here
    "thread": lambda model: in_thread(lambda: model.generate(IDS, max_new_tokens=2)),  # here
    "no_grad": torch.no_grad()(lambda model: model(input_ids=IDS)),  # here
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_ordered_dtype_that_fails(call: Callable[[Any], Any], ordered: Any) -> None:
    """A step that fails in the dtype that was ordered, in a call or a generation."""
    with assert_here("was asked for"), fault(ordered, DOWN, "not_implemented"):
        call(ordered)


def test_adapter_with_a_weight_of_its_own(tmp_path: Path) -> None:
    """An adapter that a rescale cannot follow, when it is loaded."""
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["down_proj"], r=2)
    made = peft.get_peft_model(engineered("llama"), config)
    made.save_pretrained(tmp_path)
    model = engineered("llama")
    rescale = Rescale(((residual(model), 6),))
    keep_rescaled(model, *fold_in(model, rescale))
    with assert_here("is taken back"):
        peft.PeftModel.from_pretrained(model, tmp_path)  # here


def test_copy_whose_modules_were_wrapped(tmp_path: Path) -> None:
    """A copy notices at once that its modules are wrapped."""
    model = engineered("llama")
    keep_rescaled(model, *fold_in(model, Rescale(((residual(model), 6),))))
    copied = copy.deepcopy(model)
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["down_proj"], r=2)
    with assert_here("is taken back"):
        peft.get_peft_model(copied, config)  # here


def test_input_that_nobody_proved() -> None:
    """A module that runs beside the text which the rescale was proven on."""
    model = engineered("llama")
    rescale = Rescale(((residual(model), 6),), ("model.layers.0.mlp",))
    keep_rescaled(model, *fold_in(model, rescale))
    with assert_here("proved for text alone"):
        model(input_ids=IDS)  # here


# What was optimized


def test_optimized(tmp_path: Path) -> None:
    """A call beyond the range of the form, in a thread as well, and a form that cannot be loaded."""
    optimized(Mlp(), tmp_path / "out", "export")
    loaded = load_optimized(tmp_path / "out")
    with assert_here("not 1..8"):
        loaded(x=torch.randn(9, 16))  # here
    loaded = load_optimized(tmp_path / "out")
    with assert_here("not 1..8"):
        in_thread(lambda: loaded(x=torch.randn(9, 16)))  # here
