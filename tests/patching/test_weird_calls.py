"""Whatever is passed, patched transformers does what plain transformers does: it loads, or raises the same error."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import TINY

import safe_dtype
from safe_dtype import plan_of
from safe_dtype.errors import NoPlanError

Saved = Callable[..., Path]

TENSORS = {"model.embed_tokens.weight": torch.zeros(96, 32)}

# Arguments beside the folder.
ARGUMENTS: dict[str, list[Any]] = {
    "config": [5, "nowhere", b"x", {}, {"hidden_size": 4}, object(), transformers.BertConfig()],
    "state_dict": [{}, TENSORS, {"a": 1}, 5],
    "dtype": [5, "float64", "int8", torch.float64, torch.int8, {}, {"": "bfloat16"}, {"model": "float32"}, "no", []],
    "torch_dtype": [5, "float32", "no"],
    "device_map": [5, "nowhere", {}, {"": "cpu"}, {"": 0}, torch.device("cpu"), torch.device("meta"), "meta", "disk",
                   [], True, -1, {"": None}, 3.5, "auto", {"model": "cpu"}],
    "max_memory": [5, {"cpu": "some"}, {0: "1GB"}, [], {"cpu": None}, {"cpu": "1MB"}],
    "subfolder": [None, 5, "nowhere", Path("nowhere")],
    "revision": [None, 5, "nowhere"],
    "variant": [None, 5, "nowhere"],
    "token": [5, None, True, object()],
    "cache_dir": [5, "nowhere", None],
    "use_safetensors": [5, None, False, "x"],
    "gguf_file": [5, "nowhere", ""],
    "quantization_config": [5, {}, {"quant_method": 5}, {"quant_method": "nonsense"}, object()],
    "local_files_only": [5, None, "x"],
    "attn_implementation": [5, {"": "eager"}, {}, "nonsense", "flash_attention_2"],
    "adapter_kwargs": [5, None, {}],
    "distributed_config": [5],
    "ignore_mismatched_sizes": [True],
    "output_loading_info": ["yes", 0],
    "num_hidden_layers": [1, "x"],
    "nonsense": [5],
}  # fmt: skip
SOURCES = [None, 5, b"x", "", "nowhere", "nowhere/at-all", "./nowhere", "a/b/c", "../x", "x" * 500, "a b", "\0", [], {},
           Path("nowhere"), object(), TINY]  # fmt: skip


def outcome(call: Callable[[], Any]) -> tuple[str, type]:
    """Return what a call ends with: the type of the model, or of the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = call()
        except Exception as exc:  # noqa: BLE001  (whatever it is, it is compared)
            return "raises", type(exc)
        return "returns", type(found)


def assert_same(call: Callable[[], Any]) -> None:
    """Compare the call with and without the patch."""
    plain = outcome(call)
    with safe_dtype.patched():
        assert outcome(call) == plain


LOADERS = [transformers.AutoModelForCausalLM, transformers.Qwen3ForCausalLM]


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("loader", LOADERS, ids=lambda one: one.__name__)
def test_arguments(loader: Any, name: str, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument of the wrong kind, or one that contradicts another, ends as in plain transformers."""
    monkeypatch.chdir(tmp_path)
    for value in ARGUMENTS[name]:
        assert_same(lambda value=value: loader.from_pretrained(saved(), **{name: value}))


@pytest.mark.parametrize("loader", LOADERS, ids=lambda one: one.__name__)
def test_sources(loader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that is no checkpoint ends as in plain transformers."""
    monkeypatch.chdir(tmp_path)
    for source in SOURCES:
        assert_same(lambda source=source: loader.from_pretrained(source))
        config = TINY["qwen3"].make().config
        for state_dict in (None, {}, TENSORS):
            assert_same(
                lambda source=source, state_dict=state_dict, config=config: loader.from_pretrained(
                    source, config=config, state_dict=state_dict
                )
            )


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda folder: transformers.Qwen3ForCausalLM.from_pretrained(), id="nothing"),
        pytest.param(
            lambda folder: transformers.Qwen3ForCausalLM.from_pretrained(
                folder, pretrained_model_name_or_path=folder
            ),
            id="twice",
        ),
        pytest.param(lambda folder: transformers.Qwen3ForCausalLM.from_pretrained(folder, 5, 6), id="for-init"),
        pytest.param(lambda folder: transformers.PreTrainedModel.from_pretrained(folder), id="base-class"),
        pytest.param(lambda folder: transformers.BertModel.from_pretrained(folder), id="wrong-class"),
        pytest.param(
            lambda folder: transformers.Qwen3ForCausalLM.from_pretrained(
                None, config=transformers.Qwen3Config(**TINY["qwen3"].make().config.to_dict()), state_dict=None
            ),
            id="no-weights",
        ),
        pytest.param(lambda folder: load_on_meta(folder), id="on-meta"),
    ],
)  # fmt: skip
def test_calls(call: Callable[[Path], Any], saved: Saved) -> None:
    """Calls that are wrong in their shape end as in plain transformers."""
    assert_same(lambda: call(saved()))


def load_on_meta(folder: Path) -> Any:
    """Load under a default device that holds no numbers."""
    with torch.device("meta"):
        return transformers.Qwen3ForCausalLM.from_pretrained(folder)


FIELDS = {
    "architectures": [5, [1], "Qwen3ForCausalLM", []],
    "hidden_size": ["x", [1, 2], {}],
    "num_attention_heads": [0, "x"],
    "head_dim": ["x", [8]],
    "vocab_size": [None, [96]],
    "quantization_config": [5, "x", {}],
    "transformers_weights": [5, "nowhere"],
    "num_key_value_heads": ["x", [2, 2]],
    "model_type": [None, 5],  # one that is unheard of loads, where transformers has the architecture
}


@pytest.mark.parametrize("field", FIELDS)
def test_configs(field: str, saved: Saved, tmp_path: Path) -> None:
    """A config.json whose fields hold something else ends as in plain transformers."""
    folder = Path(shutil.copytree(saved(), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    for value in FIELDS[field]:
        (folder / "config.json").write_text(json.dumps(config | {field: value}))
        for loader in LOADERS:
            assert_same(lambda loader=loader: loader.from_pretrained(folder))


def nested(opening: str, closing: str) -> bytes:
    """Return a safetensors file whose header is nested deeper than anybody reads."""
    header = (opening * 100_000 + "1" + closing * 100_000).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.unlink(), id="no-weights"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-100]), id="truncated"),
        pytest.param(lambda file: file.write_bytes(b"nonsense"), id="no-header"),
        pytest.param(lambda file: file.write_bytes(nested("[", "]")), id="header-of-deep-lists"),
        pytest.param(lambda file: file.write_bytes(nested('{"a":', "}")), id="header-of-deep-tables"),
        pytest.param(lambda file: file.with_name("config.json").write_text("{"), id="config-is-no-json"),
        pytest.param(lambda file: file.with_name("config.json").write_bytes(b"\xff"), id="config-is-no-text"),
        pytest.param(lambda file: file.rename(file.with_name("model.safetensors.index.json")), id="bad-index"),
    ],
)
def test_files(damage: Callable[[Path], Any], saved: Saved, tmp_path: Path) -> None:
    """A folder with broken files ends as in plain transformers."""
    folder = Path(shutil.copytree(saved(), tmp_path / "model"))
    damage(folder / "model.safetensors")
    for loader in LOADERS:
        assert_same(lambda loader=loader: loader.from_pretrained(folder))


def test_no_config(saved: Saved, tmp_path: Path) -> None:
    """A folder without a config ends as in plain transformers."""
    folder = Path(shutil.copytree(saved(), tmp_path / "model"))
    (folder / "config.json").unlink()
    # Not with the class itself: transformers then takes its default config, of 8 billion parameters.
    assert_same(lambda: transformers.AutoModelForCausalLM.from_pretrained(folder))


def test_unplanned_in_threads(saved: Saved) -> None:
    """Threads that load without a plan leave transformers whole too."""
    tie_weights, dtype = transformers.PreTrainedModel.tie_weights, torch.get_default_dtype()
    folder = saved()

    def load_some(_: int) -> None:
        for _ in range(6):
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)

    try:
        with safe_dtype.patched(), ThreadPoolExecutor(4) as pool:
            list(pool.map(load_some, range(4)))
        assert transformers.PreTrainedModel.tie_weights is tie_weights
        assert torch.get_default_dtype() is dtype
    finally:
        transformers.PreTrainedModel.tie_weights = tie_weights
        torch.set_default_dtype(dtype)


def test_unplanned_is_logged(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    """What loads without a plan says so in one line; what raises by itself is not talked about."""
    with safe_dtype.patched():
        model = transformers.AutoModelForCausalLM.from_pretrained(saved(), dtype=torch.float64)
        (line,) = [one for one in caplog.records if one.name.startswith("safe_dtype")]
        assert line.levelno == logging.WARNING
        assert "float64" in line.getMessage()
        with pytest.raises(NoPlanError):
            plan_of(model)
        caplog.clear()
        with pytest.raises(OSError, match=r"nowhere|connect"):
            transformers.AutoModelForCausalLM.from_pretrained("nowhere")
    assert not [one for one in caplog.records if one.name.startswith("safe_dtype")]
