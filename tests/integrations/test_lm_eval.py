"""lm-eval takes a guarded model as it is: numbers of a plain one while all is well, of float32 where it fails."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from safe_dtype import FLOAT32, guard, patched, plan_of, report
from safe_dtype.testing import fault

pytestmark = [pytest.mark.needs("lm_eval"), pytest.mark.filterwarnings("default")]

PAIRS = [("The argument is", " good"), ("A ship on", " the sea"), ("Rain", " in the night")]
LAYER = "model.layers.1.mlp.down_proj"


def measured(model: Any, folder: Path) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each ending, and whether it is the greedy one."""
    harness = import_module("lm_eval.models.huggingface").HFLM
    instance = import_module("lm_eval.api.instance").Instance
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    requests = [
        instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index) for index, pair in enumerate(PAIRS)
    ]
    wrapped = harness(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    return list(wrapped.loglikelihood(requests, disable_tqdm=True))


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    """Return a plain model."""
    return tf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def test_healthy(tiny_qwen3: Path) -> None:
    """Every number is that of the plain model."""
    model = guard(loaded(tiny_qwen3, torch.bfloat16))
    assert measured(model, tiny_qwen3) == measured(loaded(tiny_qwen3, torch.bfloat16), tiny_qwen3)
    assert report(model).events == ()


@pytest.mark.parametrize("kind", ["nan", "cublas"])
def test_rescued(tiny_qwen3: Path, kind: str) -> None:
    """Every number is that of float32."""
    model = guard(loaded(tiny_qwen3, torch.bfloat16))
    with fault(model, LAYER, kind):
        found = measured(model, tiny_qwen3)
    assert found == measured(loaded(tiny_qwen3, torch.float32), tiny_qwen3)
    assert [event.after for event in report(model).events] == [FLOAT32]


def test_loaded_by_name(tiny_qwen3: Path) -> None:
    """`lm_eval --model hf` loads by name: under `patched` (and `safe-dtype run`) that model is planned and guarded."""
    harness = import_module("lm_eval.models.huggingface").HFLM
    with patched(tell="nothing"):
        model = harness(pretrained=str(tiny_qwen3), device="cpu", batch_size=2).model
    assert plan_of(model)
    assert report(model).events == ()
