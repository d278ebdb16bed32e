"""A model type that transformers does not know, with an architecture that it has: Kimi-K2 is such a checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from command_run import Run, run  # noqa: F401  # a fixture
from safetensors.torch import load_file

import safe_dtype
from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM, SafeDtypeWarning, plan_of
from safe_dtype.checkpoints.known_config import known_config

Saved = Callable[..., Path]
UNKNOWN = "no model type 'kimi_k2'.*Qwen3ForCausalLM"


@pytest.fixture
def kimi(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """The bundled model under a model type that nobody knows."""
    return relabelled(tiny_qwen3, tmp_path / "kimi")


def relabelled(source: Path, folder: Path, **fields: Any) -> Path:
    """Copy a checkpoint, and write fields into its config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "kimi_k2"} | fields))
    return folder


def patched_auto(folder: Path) -> Any:
    """Load in a patched program."""
    with safe_dtype.patched():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)


def patched_config(folder: Path) -> Any:
    """Load in a patched program that reads the config first."""
    with safe_dtype.patched():
        config = transformers.AutoConfig.from_pretrained(folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, config=config)


LOADERS: dict[str, Callable[[Path], Any]] = {
    "SafeAutoModel": SafeAutoModel.from_pretrained,
    "SafeAutoModelForX": SafeAutoModelForCausalLM.from_pretrained,
    "patched": patched_auto,
    "patched-config": patched_config,
}


@pytest.mark.parametrize("loader", LOADERS)
def test_loads(loader: str, kimi: Path, tiny_qwen3: Path) -> None:
    """It loads as the architecture that its config names, planned and guarded, with a warning."""
    with pytest.raises(ValueError, match="kimi_k2"):
        transformers.AutoModelForCausalLM.from_pretrained(kimi)
    with pytest.warns(SafeDtypeWarning, match=UNKNOWN):
        model = LOADERS[loader](kimi)
    known = SafeAutoModel.from_pretrained(tiny_qwen3)
    assert type(model) is type(known)
    assert plan_of(model).storage == plan_of(known).storage
    ids = torch.arange(20, 60)[None]
    assert torch.equal(model(ids).logits, known(ids).logits)


@pytest.mark.parametrize("loader", LOADERS)
def test_nothing_to_go_by(loader: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    """An architecture that transformers does not have ends as ever, and so does none."""
    for number, names in enumerate((["NoModel"], ["BertTokenizer"], [], None)):
        folder = relabelled(tiny_qwen3, tmp_path / str(number), architectures=names)
        with pytest.raises(ValueError, match="kimi_k2"):
            LOADERS[loader](folder)


def test_own_code(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Code that comes with the checkpoint is used where it is trusted, and not missed where it is not."""
    own = {"AutoConfig": "kimi.KimiConfig", "AutoModelForCausalLM": "kimi.KimiForCausalLM"}
    folder = relabelled(tiny_qwen3, tmp_path / "kimi", auto_map=own, architectures=["Qwen3ForCausalLM"])
    (folder / "kimi.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class KimiConfig(Qwen3Config):\n    model_type = 'kimi_k2'\n"
        "class KimiForCausalLM(Qwen3ForCausalLM):\n    config_class = KimiConfig\n"
    )
    with pytest.warns(SafeDtypeWarning, match=UNKNOWN):
        model = SafeAutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert type(model) is transformers.Qwen3ForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("error", SafeDtypeWarning)
        trusted = SafeAutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        with safe_dtype.patched():
            also = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert [type(one).__name__ for one in (trusted, also)] == ["KimiForCausalLM"] * 2


def test_asks_nothing_that_it_need_not(tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether code may be run is asked on a terminal only where transformers has no such architecture."""
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    own = {"AutoConfig": "kimi.KimiConfig"}
    known = relabelled(tiny_qwen3, tmp_path / "known", auto_map=own)
    with pytest.warns(SafeDtypeWarning, match=UNKNOWN):
        assert type(known_config(known)) is transformers.Qwen3Config
    assert questions == []
    with pytest.raises(ValueError, match="trust_remote_code"):
        known_config(relabelled(tiny_qwen3, tmp_path / "unknown", auto_map=own, architectures=["KimiForCausalLM"]))
    assert len(questions) == 1


def test_adapter(kimi: Path, tmp_path: Path) -> None:
    """An adapter of such a checkpoint loads as well."""
    base = transformers.Qwen3ForCausalLM.from_pretrained(kimi)
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    with pytest.warns(SafeDtypeWarning, match=UNKNOWN), safe_dtype.patched():
        model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert str(model.dtype) == f"torch.{plan_of(model).storage}"


def test_config_alone(kimi: Path, saved: Saved) -> None:
    """A patched AutoConfig gives the architecture's config with the arguments of the call, an unpatched one its error."""
    with pytest.warns(SafeDtypeWarning, match=UNKNOWN), safe_dtype.patched():
        config, unused = transformers.AutoConfig.from_pretrained(
            kimi, return_unused_kwargs=True, num_hidden_layers=1, other=5
        )
    assert (type(config), config.num_hidden_layers, unused) == (transformers.Qwen3Config, 1, {"other": 5})
    with pytest.raises(ValueError, match="kimi_k2"):
        transformers.AutoConfig.from_pretrained(kimi)


@pytest.mark.parametrize("command", ["plan", "verify", "generate", "rescue"])
def test_commands(command: str, kimi: Path, run: Run) -> None:  # noqa: F811
    """Every command takes it, and warns."""
    more = {"generate": ["The argument is"], "verify": ["--dtype", "bfloat16"]}
    with warnings.catch_warnings():
        warnings.simplefilter("always", SafeDtypeWarning)
        done = run(command, str(kimi), *more.get(command, []))
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "kimi_k2" in done.stdout + done.stderr
    assert "does not recognize" not in done.stdout + done.stderr


def patched_class(folder: Path) -> Any:
    """Load in a patched program by the class itself."""
    with safe_dtype.patched():
        return transformers.DeepseekV3ForCausalLM.from_pretrained(folder)


def config_of_its_class(folder: Path) -> Any:
    """Load with a config that its class has read."""
    config = transformers.DeepseekV3Config.from_pretrained(folder)
    return SafeAutoModelForCausalLM.from_pretrained(folder, config=config)


OF_DEEPSEEK = LOADERS | {"patched-class": patched_class, "config-of-its-class": config_of_its_class}


@pytest.fixture
def unconverted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has loaded no such model before."""
    from transformers import conversion_mapping

    conversion_mapping.get_checkpoint_conversion_mapping("")
    registered = conversion_mapping._checkpoint_conversion_mapping_cache
    assert registered is not None
    own = {name: conversions for name, conversions in registered.items() if name != "kimi_k2"}
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", own)


@pytest.mark.usefixtures("unconverted")
@pytest.mark.parametrize("loader", OF_DEEPSEEK)
def test_experts_are_joined(loader: str, tmp_path: Path) -> None:
    """Experts lie one by one in the files, and are joined on loading: as those of the architecture are."""
    from published_models import PUBLISHED

    folder = PUBLISHED["kimi-k2"].save(tmp_path / "kimi")
    known = relabelled(folder, tmp_path / "known")
    config = json.loads((known / "config.json").read_text())
    (known / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_v3"}))
    with pytest.warns(SafeDtypeWarning, match="no model type 'kimi_k2'"):
        model = OF_DEEPSEEK[loader](folder)
    plain = transformers.DeepseekV3ForCausalLM.from_pretrained(known, dtype=model.dtype)
    weights = plain.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert stored.keys() == load_file(folder / "model.safetensors").keys()
