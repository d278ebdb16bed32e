"""What is to be optimized ends as a folder or a file that another process loads, or it is told why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from optimizing.form_models import Mlp
from optimizing.zoo import ZOO
from publishing.conftest import hub  # noqa: F401  # a fixture
from publishing.loopback import LoopbackHub

from safe_dtype.errors import CheckpointNotFoundError, NotOptimizableError
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.optimizing.attempts.load_model import load_subject
from safe_dtype.optimizing.model_source import source_of
from safe_dtype.optimizing.nouns.job import Job

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3"


def test_a_folder(tmp_path: Path) -> None:
    """Of a folder the class, the saved dtype and the size are read; its path stays out of its name."""
    source = source_of(MODEL, tmp_path)
    assert (source.name, source.path, source.model_class) == ("tiny-qwen3", MODEL, "Qwen3ForCausalLM")
    assert (source.saved, source.parameters) == (BFLOAT16, 2_115_520)


def test_a_repository(hub: LoopbackHub, tmp_path: Path) -> None:  # noqa: F811
    """A repository is downloaded, without the weights of other frameworks."""
    files = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.is_file()}
    hub.push("org/model", files | {"tf_model.h5": b"not wanted"})
    source = source_of("org/model", tmp_path)
    assert (source.name, source.model_class, source.saved) == ("org/model", "Qwen3ForCausalLM", BFLOAT16)
    assert (source.path / "config.json").read_bytes() == files["config.json"]
    assert not (source.path / "tf_model.h5").exists()


def test_a_model_in_memory(tmp_path: Path) -> None:
    """A model of transformers is saved, with what saving loses kept aside; the same model is loaded from there."""
    torch.manual_seed(0)
    model = ZOO["mixtral_eager"].model()
    source = source_of(model, tmp_path)
    assert (source.name, source.saved) == ("MixtralForCausalLM", FLOAT32)
    assert "experts_implementation=eager" in source.loaded_with
    job = Job(source.path, source.model_class, FLOAT32, "eager", tmp_path, tmp_path, loaded_with=source.loaded_with)
    again = load_subject(job)
    assert again.config._experts_implementation == "eager"
    inputs = ZOO["mixtral_eager"].inputs()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_module(tmp_path: Path) -> None:
    """A module of the user's own becomes a file; its class has to be importable."""
    source = source_of(Mlp(), tmp_path)
    assert (source.name, source.model_class, source.path.is_file()) == ("Mlp", "", True)
    with pytest.raises(NotOptimizableError, match="without lambdas and local classes"):
        source_of(torch.nn.ModuleDict({"f": type("Local", (torch.nn.Module,), {})()}), tmp_path)


def test_not_there(tmp_path: Path) -> None:
    """What is neither a folder nor a repository is told as everywhere."""
    with pytest.raises(CheckpointNotFoundError):
        source_of(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(NotOptimizableError, match="pass the folder that it lies in"):
        source_of(MODEL / "config.json", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            {"architectures": ["TheirForCausalLM"]}, "which this transformers does not have", id="remote-code"
        ),
        pytest.param({"quantization_config": {"quant_method": "awq"}}, "is quantized with awq", id="quantized"),
    ],
)
def test_not_for_us(change: dict[str, object], said: str, tmp_path: Path) -> None:
    """A class that transformers has not, or weights without a float32 to hold them against, are refused."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in MODEL.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotOptimizableError, match=said):
        source_of(folder, tmp_path)
