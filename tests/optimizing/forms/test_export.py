"""A program of torch.export, loaded where nobody has imported the code of its model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf

from safe_dtype.optimizing.forms.export import FILE
from safe_dtype.optimizing.graphs.program import program_of
from safe_dtype.optimizing.nouns.job import Dynamic

_LOADS = """
import sys
from pathlib import Path
from safe_dtype.optimizing.attempts.load_model import load_artifact
from safe_dtype.optimizing.forms import form_named
load_artifact(form_named("export"), Path(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in float32 for several batch sizes: its program names an operator of transformers."""
    torch.manual_seed(0)
    config = tf.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, use_cache=False,
    )  # fmt: skip
    model = tf.MixtralForCausalLM(config).eval()
    model.set_experts_implementation("grouped_mm")
    folder = tmp_path_factory.mktemp("artifact")
    program = program_of(model, {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}, Dynamic(batch=(1, 4)))
    assert "transformers.grouped_mm_fallback" in str(program.graph)
    torch.export.save(program, str(folder / FILE))
    return folder


@pytest.mark.slow
def test_operators_of_the_model(folder: Path) -> None:
    """The code that registers them is imported by the class of the model."""
    loaded = _loaded(folder, "MixtralForCausalLM")
    assert loaded.returncode == 0, loaded.stderr[-2000:]


@pytest.mark.needs("torch>=2.13")
def test_an_operator_that_is_not_there(folder: Path) -> None:
    """The error says which one, where torch says only that there was an error, and to look for warnings."""
    loaded = _loaded(folder, "")
    last = loaded.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: ")
    assert "torch.ops.transformers.grouped_mm_fallback" in last
    assert len(last) < 200


def _loaded(folder: Path, model_class: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _LOADS, str(folder), model_class]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
