"""An older CPU, for real: oneDNN and ATen are told to leave out what it would not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

PROGRAM = """
import json, sys
import torch, transformers as tf
from safe_dtype import SafeAutoModel, plan_of, report

folder = sys.argv[1]
torch.manual_seed(0)
config = tf.Qwen3Config(
    vocab_size=2000, hidden_size=768, intermediate_size=2304, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=3, head_dim=128, tie_word_embeddings=True, eos_token_id=None,
)
tf.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
model = SafeAutoModel.from_pretrained(folder, policy="prefer=memory")
ids = torch.arange(10, 74)[None]
with torch.inference_mode():
    exact = tf.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")(ids).logits
    logits = model(ids).logits
plan = plan_of(model)
print(json.dumps({
    "storage": str(plan.storage), "compute": str(plan.compute), "cast_from": plan.routes.cast_from,
    "error": ((logits - exact).square().mean() / exact.square().mean()).sqrt().item(),
    "tokens": model.generate(ids, max_new_tokens=5, do_sample=False).shape[1], "events": len(report(model).events),
}))
"""


@pytest.mark.slow
@pytest.mark.needs("x86")
def test_products_in_float32(tmp_path: Path) -> None:
    """Without bf16 arithmetic a model stays in bfloat16 where memory is wanted, and its prompts are computed in float32."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "model")],
        env=os.environ | OLDER | {"SAFE_DTYPE_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["storage"], found["compute"]) == ("bfloat16", "float32")
    assert found["cast_from"] in (1, 2, 9, 17, 90)  # from 2, 9 and 17 rows on where fewer are compiled
    assert (found["tokens"], found["events"]) == (69, 0)
    assert found["error"] < 0.02
