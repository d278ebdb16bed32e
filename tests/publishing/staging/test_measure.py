"""What two loaders make of a staged folder, measured from its files."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from tiny_models import TINY

from safe_dtype.errors import CheckpointError, NothingToCompareError, NotPublishableError
from safe_dtype.facts import FLOAT32
from safe_dtype.publishing.staging.measure import Reference, by_safe_dtype, inputs_for, plainly, reference_of
from safe_dtype.verifying import BUILT_IN_TEXT, Checkpoint

LIMIT = 0.02


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in float32, without a tokenizer."""
    return TINY["qwen3"].save(tmp_path_factory.mktemp("base") / "model", torch.float32)


@pytest.fixture(scope="module")
def reference(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """What the base says in float32."""
    vocab_size = json.loads((base / "config.json").read_text())["vocab_size"]
    return reference_of(Checkpoint(str(base), "cpu"), vocab_size, None, tmp_path_factory.mktemp("reference"))


def test_inputs(base: Path, tiny_qwen3: Path) -> None:
    """A text where there is a tokenizer, else random tokens; a text of the user's own needs a tokenizer."""
    _, kind, digest = inputs_for(Checkpoint(str(tiny_qwen3), "cpu"), 512, None)
    assert (kind, digest) == ("built-in text", sha256(BUILT_IN_TEXT.encode()).hexdigest())
    own = "To be, or not to be. " * 40
    _, kind, digest = inputs_for(Checkpoint(str(tiny_qwen3), "cpu"), 512, own)
    assert (kind, digest) == ("own text", sha256(own.encode()).hexdigest())
    batches, kind, digest = inputs_for(Checkpoint(str(base), "cpu"), 32, None)
    assert (kind, digest) == ("random tokens", None)
    assert max(int(batch["input_ids"].max()) for batch in batches) < 32
    with pytest.raises((CheckpointError, NothingToCompareError)):  # by the version of transformers
        inputs_for(Checkpoint(str(base), "cpu"), 32, own)


@pytest.mark.parametrize("text", ["a", "a b c", "only a few words"])
def test_too_little_text(tiny_qwen3: Path, text: str) -> None:
    """Nothing is published on what was measured on a few tokens."""
    with pytest.raises(NothingToCompareError, match=r"the text has \d+ tokens"):
        inputs_for(Checkpoint(str(tiny_qwen3), "cpu"), 512, text)


def test_reference(reference: Reference) -> None:
    """The reference knows its class, what it was measured on, and the largest number of every block."""
    assert reference.architecture == "Qwen3ForCausalLM"
    assert reference.measured_on.positions == sum(batch["input_ids"].numel() for batch in reference.batches)
    assert all(name.startswith("model.layers.") and peak > 0 for name, peak in reference.peaks.items())


@pytest.mark.slow
def test_the_base_itself(base: Path, reference: Reference, tmp_path: Path) -> None:
    """Both loaders make of the base in float32 what the base is: no drift, the same peaks."""
    plain, peaks = plainly(base, reference, device="cpu", max_drift=LIMIT, scratch=tmp_path)
    ours = by_safe_dtype(base, FLOAT32, reference, device="cpu", max_drift=LIMIT)
    for fidelity, loader in ((plain, "transformers"), (ours, "safe_dtype")):
        assert (fidelity.loader, fidelity.loaded_in, fidelity.ended_in) == (loader, "float32", "float32")
        assert (fidelity.nonfinite, fidelity.beyond) == (0, None)
        assert fidelity.drift.kl_mean < 1e-9
        assert len(fidelity.kl) == min(512, fidelity.drift.positions)
    assert peaks == pytest.approx(dict(reference.peaks))


def test_other_weights(reference: Reference, tmp_path: Path) -> None:
    """Weights that compute NaN are beyond every limit, and their outputs are counted."""
    folder = TINY["qwen3"].save(tmp_path / "broken", torch.float32)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    plain, _ = plainly(folder, reference, device="cpu", max_drift=LIMIT, scratch=tmp_path / "scratch")
    assert plain.nonfinite > 0
    assert plain.beyond


@pytest.mark.slow
def test_what_cannot_be_loaded(reference: Reference, tmp_path: Path) -> None:
    """A folder that plain transformers cannot load must not be published, and the error has its last line."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(NotPublishableError, match=r"plain transformers cannot load and run it \(\w+Error: "):
        plainly(tmp_path, reference, device="cpu", max_drift=LIMIT, scratch=tmp_path / "scratch")
