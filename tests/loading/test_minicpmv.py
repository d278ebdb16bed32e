"""MiniCPM-V 4.5 comes with code of its own, here a stub of the same shape: planned, guarded, and mended in every part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from safe_dtype import FLOAT32, SafeAutoModel, plan_of, report
from safe_dtype.testing import fault

pytestmark = pytest.mark.filterwarnings("ignore:.*float16 was (measured on a text|asked for)")

CODE = Path(__file__).parent / "minicpmv" / "modeling_minicpmv.py"
LLM = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
IDS = torch.tensor([[3, 4, 9, 9, 9, 9, 5, 6]])
PARTS = ("vpm.encoder.layers.1", "resampler.kv_proj", "llm.model.layers.0.mlp", "llm.lm_head")


def question() -> dict[str, Any]:
    """Return what its processor returns: a list of pictures in float32 for every row."""
    picture = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(IDS)
    return {"input_ids": IDS, "pixel_values": [[picture]], "image_bound": [[(2, 6)]], "attention_mask": mask}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16 with its code beside it."""
    folder = tmp_path_factory.mktemp("minicpmv") / "model"
    folder.mkdir()
    shutil.copy(CODE, folder)
    names = {"AutoConfig": "MiniCPMVConfig", "AutoModel": "MiniCPMV", "AutoModelForCausalLM": "MiniCPMV"}
    config = {
        "model_type": "minicpmv", "architectures": ["MiniCPMV"], "dtype": "bfloat16", "llm_config": LLM,
        "vision_config": VISION, "auto_map": {name: f"modeling_minicpmv.{one}" for name, one in names.items()},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = transformers.AutoModel.from_config(
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
    )
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn_like(weight)
    made.bfloat16().save_pretrained(folder)
    shutil.copy(CODE, folder)
    return folder


def answers(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a question, and what is generated."""
    with torch.no_grad():
        logits = model(question()).logits
    return logits, model.generate(**question(), max_new_tokens=4, do_sample=False)


def plain(folder: Path, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what plain transformers gives."""
    return answers(
        transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), trust_remote_code=True).eval()
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_as_in_plain_transformers(dtype: str, folder: Path) -> None:
    """In each dtype it answers as in plain transformers, bit for bit, and nothing has to be mended."""
    model = SafeAutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=True)
    assert type(model).__name__ == "MiniCPMV"
    assert str(plan_of(model).storage) == dtype
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(answers(model), plain(folder, dtype), strict=True))
    assert report(model).events == ()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["nan", "cublas"])
def test_fault_in_a_part(kind: str, part: str, folder: Path) -> None:
    """A part that fails in bfloat16, in its `forward` or in its own `generate`: the answers are those of float32."""
    logits, tokens = plain(folder, "float32")
    load = {"dtype": "bfloat16", "policy": "auto,ladder=bf16>fp32", "trust_remote_code": True}
    model = SafeAutoModel.from_pretrained(folder, **load)
    with pytest.warns(match="bfloat16 was asked for"), fault(model, part, kind), torch.no_grad():
        assert torch.equal(model(question()).logits, logits)
    assert report(model).events[-1].after == FLOAT32
    model = SafeAutoModel.from_pretrained(folder, **load)
    with pytest.warns(match="bfloat16 was asked for"), fault(model, part, kind):
        assert torch.equal(model.generate(**question(), max_new_tokens=4, do_sample=False), tokens)
    assert report(model).events[-1].after == FLOAT32
