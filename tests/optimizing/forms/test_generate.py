"""The step of `generate`, compiled: made as it will be used, kept on the disk, and compiled once for all processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from guarding.generators import BOTH_ROWS, ONE_ROW
from optimizing.compiled_generation import captured_only, graphs, tiny_generator
from optimizing.made import inductor, missing_here
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from safe_dtype.errors import EnvironmentNotFitError
from safe_dtype.optimizing import optimize, optimize_model
from safe_dtype.optimizing.environment import environment
from safe_dtype.optimizing.forms.generate import FORM, keep_compiled
from safe_dtype.optimizing.nouns.form import BuildRequest
from safe_dtype.optimizing.nouns.job import Dynamic
from safe_dtype.optimizing.nouns.record import Outcome

__all__ = ["captured_only"]

NAMED = "TORCHINDUCTOR_CACHE_DIR"
SECONDS = 280.0
WINDOWS = tf.Gemma3TextConfig(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"], max_position_embeddings=32,
)  # fmt: skip


def request_for(model: Any, folder: Path) -> BuildRequest:
    """Return what the form is made from."""
    return BuildRequest(model, BOTH_ROWS, folder, Dynamic((1, 2)))


@pytest.mark.needs("torch>=2.13")
@torch.no_grad()
@pytest.mark.usefixtures("captured_only", "own_cache")
def test_built_as_it_is_used(tmp_path: Path) -> None:
    """What answers the batches is the graph that `generate` uses: no other is captured for it."""
    model = tiny_generator()
    run = FORM.build(request_for(model, tmp_path))
    answer = run(**ONE_ROW)["logits"]
    torch.testing.assert_close(answer, tiny_generator()(**ONE_ROW).logits)
    assert graphs() == 2  # for two rows, and for one
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("torch>=2.13")
@torch.no_grad()
@pytest.mark.usefixtures("captured_only", "own_cache")
def test_windows_that_slide(tmp_path: Path) -> None:
    """However far a text outgrows its window: no graph for each token, and the logits of eager."""
    torch.manual_seed(0)
    model = tf.Gemma3ForCausalLM(WINDOWS).eval()
    texts = {"input_ids": torch.randint(97, (1, 24))}
    expected = model(**texts).logits
    run = FORM.build(BuildRequest(model, texts, tmp_path, Dynamic((1, 2))))
    torch.testing.assert_close(run(**texts)["logits"], expected)
    assert graphs() <= 3  # of a first step, of others, and of a full window


@torch.no_grad()
@pytest.mark.usefixtures("captured_only", "own_cache")
def test_a_cured_step_is_no_success(tmp_path: Path) -> None:
    """A step that its guard has cured has failed: eager answered in its place."""

    class Broken(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            out = super().forward(hidden)
            return out + torch.nan if hidden.dtype == torch.bfloat16 and hidden.shape[1] == 1 else out

    model = tiny_generator(torch.bfloat16)
    model.model.layers[1].mlp.down_proj.__class__ = Broken
    with pytest.raises(RuntimeError, match="the step failed, and its guard went on eagerly: step"):
        FORM.build(request_for(model, tmp_path))


@pytest.mark.parametrize(
    ("named", "kept_there"),
    [
        pytest.param(None, False, id="nobody-has-named-one"),
        pytest.param(default_cache_dir(), False, id="inductor-has-noted-its-own"),
        pytest.param("/somewhere", True, id="the-user-has"),
    ],
)
def test_where_the_code_is(
    named: str | None, kept_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code is in the user's cache folder, where nobody has named another one."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    monkeypatch.setenv(NAMED, named or "")
    if named is None:
        monkeypatch.delenv(NAMED)
    keep_compiled()
    assert os.environ[NAMED] == (named if kept_there else str(tmp_path / "inductor"))


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no C++ compiler, one line says so before anything is done."""
    monkeypatch.setattr(optimize_model, "environment", lambda: environment() | {"compiler": None})
    with pytest.raises(EnvironmentNotFitError, match=r"a C\+\+ compiler"):
        optimize(tiny_generator(), out=tmp_path / "out", form="generate")
    assert list(tmp_path.iterdir()) == []


USE = """
import json, sys
import torch
from safe_dtype import load_optimized
run = load_optimized(sys.argv[1], attempt=int(sys.argv[2]))
inputs = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[3]).items()}
answer = run.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
print(json.dumps([answer.tolist(), run.fell_back]))
"""


@inductor
@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made and verified by children; another process gives eager's tokens by it, and compiles nothing."""
    if reason := missing_here("generate"):
        pytest.skip(reason)
    calls, compiler = tmp_path / "calls", tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.delenv(NAMED, raising=False)
    record = optimize(tiny_generator(), out=tmp_path / "out", form="generate", dtype="float32", seconds=SECONDS)
    number, attempt = len(record.attempts) - 1, record.attempts[-1]
    assert (attempt.form, attempt.outcome) == ("generate", Outcome.VERIFIED), attempt.reason
    assert {batch.tensors["input_ids"]["shape"][0] for batch in record.batches} == {1, 2}
    assert attempt.seconds.eager > 10 * record.attempts[0].seconds.eager  # token by token
    assert any("-shared" in call for call in calls.read_text().splitlines())
    calls.unlink()
    plain = tiny_generator()
    for inputs in (ONE_ROW, BOTH_ROWS):
        given = json.dumps({name: rows.tolist() for name, rows in inputs.items()})
        command = [sys.executable, "-c", USE, str(tmp_path / "out"), str(number), given]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        tokens, fell_back = json.loads(done.stdout.splitlines()[-1])
        assert tokens == plain.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()
        assert fell_back == ""
    assert not [call for call in calls.read_text().splitlines() if "-shared" in call or " -c " in call]
