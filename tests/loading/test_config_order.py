"""A config that the caller passes is an order where it names another dtype than the checkpoint's own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import safe_dtype
from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM, SafeDtypeWarning, plan_of
from safe_dtype.errors import ConflictError
from safe_dtype.facts import FLOAT16, FLOAT32

Saved = Callable[..., Path]
MODES = ["auto", "strict"]


def config_of(folder: Path, **fields: Any) -> Any:
    """Return the checkpoint's own config, with fields set by the caller."""
    config = transformers.AutoConfig.from_pretrained(folder)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, "float16"], ids=str)
@pytest.mark.parametrize("by", ["auto-class", "concrete-class", "safe-class", "safe-auto"])
def test_order(by: str, dtype: Any, mode: str, saved: Saved) -> None:
    """What plain transformers obeys is obeyed, in every mode, and nothing blames config.json."""
    folder = saved("qwen3")
    config = config_of(folder, dtype=dtype)
    load: dict[str, Callable[[], Any]] = {
        "auto-class": lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, config=config),
        "concrete-class": lambda: transformers.Qwen3ForCausalLM.from_pretrained(folder, config=config),
        "safe-class": lambda: SafeAutoModelForCausalLM.from_pretrained(folder, config=config, policy=mode),
        "safe-auto": lambda: SafeAutoModel.from_pretrained(folder, config=config, policy=mode),
    }
    wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config).dtype
    with warnings.catch_warnings(record=True) as caught, safe_dtype.patched(mode):
        warnings.simplefilter("always")
        model = load[by]()
    assert model.dtype == wanted == getattr(torch, str(dtype).removeprefix("torch."))
    assert plan_of(model).ordered == plan_of(model).storage
    assert not [one for one in caught if "config.json" in str(one.message)]


@pytest.mark.parametrize("legacy", ["attribute", "argument"])
@pytest.mark.parametrize("mode", MODES)
def test_legacy_name(legacy: str, mode: str, saved: Saved) -> None:
    """`torch_dtype` in a config is the same order."""
    folder = saved("qwen3")
    config = config_of(folder, torch_dtype=torch.float32)
    if legacy == "argument":
        own = {name: value for name, value in config_of(folder).to_dict().items() if name != "dtype"}
        config = transformers.Qwen3Config(**own, torch_dtype="float32")
    with safe_dtype.patched(mode):
        model = transformers.Qwen3ForCausalLM.from_pretrained(folder, config=config)
    assert (model.dtype, plan_of(model).ordered) == (torch.float32, FLOAT32)


@pytest.mark.parametrize("config", ["its-own", "no-dtype", "by-hand"])
def test_no_order(config: str, saved: Saved) -> None:
    """A config that names the checkpoint's dtype, or none, leaves the choice to the plan."""
    folder = saved("qwen3")
    passed: dict[str, Callable[[], Any]] = {
        "its-own": lambda: config_of(folder),
        "no-dtype": lambda: config_of(folder, dtype=None),
        "by-hand": lambda: transformers.Qwen3Config(**config_of(folder).to_dict()),
    }
    with safe_dtype.patched():
        model = transformers.Qwen3ForCausalLM.from_pretrained(folder, config=passed[config]())
        planned = transformers.Qwen3ForCausalLM.from_pretrained(folder)
    assert plan_of(model).ordered is None
    assert plan_of(model).storage == plan_of(planned).storage


@pytest.mark.parametrize("automatic", [{"dtype": "auto"}, {"dtype": None}, {"torch_dtype": "auto"}], ids=str)
def test_auto_reads_the_config(automatic: dict[str, Any], saved: Saved) -> None:
    """`dtype="auto"` means the config's, as in transformers; a concrete dtype comes before it."""
    folder = saved("qwen3")
    config = config_of(folder, dtype=torch.float32)
    with safe_dtype.patched():
        load = transformers.Qwen3ForCausalLM.from_pretrained
        assert plan_of(load(folder, config=config, **automatic)).ordered == FLOAT32
        assert plan_of(load(folder, config=config, dtype=torch.float16)).ordered == FLOAT16
    assert config.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_another_file(mode: str, saved: Saved, tmp_path: Path) -> None:
    """The path of another config orders the dtype that stands in it."""
    folder = saved("qwen3")
    config_of(folder, dtype=torch.float32).save_pretrained(tmp_path)
    with safe_dtype.patched(mode):
        model = transformers.Qwen3ForCausalLM.from_pretrained(folder, config=str(tmp_path))
        own = transformers.Qwen3ForCausalLM.from_pretrained(folder, config=str(folder))
    assert (model.dtype, plan_of(model).ordered) == (torch.float32, FLOAT32)
    assert plan_of(own).ordered is None


@pytest.mark.parametrize("mode", MODES)
def test_composite(mode: str, saved: Saved) -> None:
    """Of a composite config the dtype of the whole counts, as in transformers."""
    folder = saved("llava")
    whole, part = config_of(folder, dtype=torch.float32), config_of(folder)
    part.text_config.dtype = torch.float32
    llava = transformers.LlavaForConditionalGeneration
    plain = [llava.from_pretrained(folder, config=config).dtype for config in (whole, part)]
    assert plain == [torch.float32, torch.bfloat16]
    with safe_dtype.patched(mode):
        assert plan_of(llava.from_pretrained(folder, config=whole)).ordered == FLOAT32
        assert plan_of(llava.from_pretrained(folder, config=part)).ordered is None


def test_text_part(saved: Saved, tmp_path: Path) -> None:
    """The text part of a composite checkpoint, passed alone, is compared with that part of the file."""
    folder = saved("llava")
    file = json.loads((folder / "config.json").read_text())
    text = transformers.AutoConfig.from_pretrained(folder).text_config
    text.dtype = None
    own = transformers.AutoModelForCausalLM.from_config(text)
    own.to(torch.bfloat16).save_pretrained(tmp_path)
    file["text_config"]["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(file | {"dtype": "float32"}))
    text.dtype = torch.bfloat16
    with safe_dtype.patched():
        assert plan_of(type(own).from_pretrained(tmp_path, config=text)).ordered is None
        text.dtype = torch.float32
        assert plan_of(type(own).from_pretrained(tmp_path, config=text)).ordered == FLOAT32


def test_state_dict(saved: Saved) -> None:
    """Without a file, the dtype of a passed config is an order where the weights are in another."""
    weights = transformers.Qwen3ForCausalLM.from_pretrained(saved("qwen3")).state_dict()
    with safe_dtype.patched():
        load = transformers.Qwen3ForCausalLM.from_pretrained
        other = load(None, config=config_of(saved("qwen3"), dtype=torch.float32), state_dict=weights)
        own = load(None, config=config_of(saved("qwen3")), state_dict=weights)
    assert plan_of(other).ordered == FLOAT32
    assert plan_of(own).ordered is None


def test_against_a_plan(saved: Saved) -> None:
    """A plan and a config that contradict each other are an error, as a plan and a `dtype=` are."""
    plan = plan_of(SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory"))
    with pytest.raises(ConflictError):
        SafeAutoModel.from_pretrained(saved("qwen3"), config=config_of(saved("qwen3"), dtype=torch.float32), plan=plan)


@pytest.mark.parametrize("mode", MODES)
def test_unknown_dtype(mode: str, saved: Saved) -> None:
    """A dtype that safe_dtype does not know is loaded as transformers loads it."""
    config = config_of(saved("qwen3"), dtype=torch.float64)
    with warnings.catch_warnings(), safe_dtype.patched(mode):
        warnings.simplefilter("ignore", SafeDtypeWarning)
        assert transformers.Qwen3ForCausalLM.from_pretrained(saved("qwen3"), config=config).dtype == torch.float64
