"""A staged folder: what plain transformers makes of it is measured, and a rescaled model is right in it as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engineered import engineered, prompts, saved
from torch import Tensor

from safe_dtype import SafeAutoModel, plan_of, report
from safe_dtype.errors import CheckpointError, NotPublishableError, UnknownDtypeError
from safe_dtype.facts import FLOAT16, Rescale
from safe_dtype.publishing.staging.check import check
from safe_dtype.publishing.staging.stage import Staged, stage
from safe_dtype.rescaling.folding.rescale_file import FILE as STORED

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """Return a Llama that leaves float16's range, staged in float16."""
    folder = tmp_path_factory.mktemp("llama")
    source = saved("llama", folder / "source")
    (source / "tokenizer_config.json").write_text('{ "a" : "layout of its own" }')
    (source / "README.md").write_text("---\nlicense: mit\npipeline_tag: text-generation\n---\n# Llama\n")
    return stage(source, folder / "staged", dtype="float16", base=f"org/llama@{COMMIT}")


def logits(model: Any, family: str) -> Tensor:
    """Return what a model says of a prompt."""
    with torch.inference_mode():
        found: Tensor = model(**prompts(family, count=1, tokens=24, seed=3)[0]).logits.float()
    return found


def plainly(folder: Path, dtype: str | torch.dtype = "auto") -> Any:
    """Return what plain transformers loads."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# What is in the folder


def test_plain_transformers_is_right(staged: Staged) -> None:
    """Loaded by nothing but transformers, in float16, it says what the base says in float32."""
    model = plainly(staged.folder)
    assert model.dtype == torch.float16
    assert torch.allclose(logits(model, "llama"), logits(engineered("llama"), "llama"), atol=0.05)


def test_as_measured(staged: Staged) -> None:
    """The evidence says so: within the limit for both loaders, all finite, and far from float16's end."""
    evidence = staged.evidence
    for one in (evidence.plain, evidence.safe_dtype):
        assert (one.loaded_in, one.ended_in, one.nonfinite, one.beyond) == ("float16", "float16", 0, None)
        assert 0 < one.drift.kl_mean < 1e-4
        assert len(one.kl) == evidence.measured_on.positions == one.drift.positions == 512
        assert sum(one.kl) / len(one.kl) == pytest.approx(one.drift.kl_mean, rel=1e-5)
    assert (
        max(one.base for one in evidence.ranges) > FLOAT16.largest > 10 * max(one.variant for one in evidence.ranges)
    )


def test_the_weights_are_the_rescaled_ones(staged: Staged) -> None:
    """The rescale is in the weights, and in the one key of the config that the norms have their eps from."""
    rescale = staged.evidence.rescale
    assert rescale is not None
    assert rescale["folded"] is True
    bits = Rescale.from_dict(rescale).bits("residual")
    assert bits > 0
    config = json.loads((staged.folder / "config.json").read_text())
    assert config["rms_norm_eps"] == rescale["config"]["rms_norm_eps"] == 1e-6 * 4.0**-bits
    assert staged.evidence.needs is None


def test_safe_dtype_leaves_it_alone(staged: Staged) -> None:
    """SafeAutoModel loads it in float16 without a second rescale, and says what plain transformers says.

    Where products or attention are computed in float32, for that is faster here, it rounds less often.
    """
    model = SafeAutoModel.from_pretrained(staged.folder, dtype="float16")
    assert plan_of(model).rescale is None
    assert not (staged.folder / STORED).exists()
    torch.testing.assert_close(logits(model, "llama"), logits(plainly(staged.folder), "llama"), rtol=1e-2, atol=2e-2)
    assert staged.evidence.safe_dtype.drift.kl_mean <= staged.evidence.plain.drift.kl_mean * 1.02


def test_fit_to_be_published(staged: Staged) -> None:
    """`check` finds nothing, and the license is the one of the base's card."""
    assert check(staged.folder) == []
    assert (staged.evidence.base.repo, staged.evidence.base.revision) == ("org/llama", COMMIT)
    assert (staged.evidence.base.license, staged.evidence.base.pipeline_tag) == ("mit", "text-generation")


def test_byte_for_byte(staged: Staged) -> None:
    """What lies beside the weights is copied as it is."""
    source = staged.folder.parent / "source"
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (staged.folder / name).read_bytes() == (source / name).read_bytes()


def test_no_place_of_this_machine(staged: Staged) -> None:
    """Nothing that people read names a folder of this machine; nothing else is left beside the stage."""
    for path in staged.folder.rglob("*"):
        if path.suffix in (".json", ".md", ".svg"):
            assert str(staged.folder.parent) not in path.read_text(), path
            assert str(Path.home()) + "/" not in path.read_text(), path
    assert {one.name for one in staged.folder.parent.iterdir()} == {"source", "staged"}


# What is refused


def test_refused(tmp_path: Path) -> None:
    """What cannot be folded overflows in plain transformers, and is refused with that reason; no file is left."""
    source = saved("gemma2", tmp_path / "source")
    with pytest.raises(NotPublishableError, match="NaN or infinity") as caught:
        stage(source, tmp_path / "staged", dtype="float16", base="org/gemma", license="gemma")
    assert "needs='safe_dtype'" in caught.value.advice
    assert caught.value.state == "not-started"
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "opt_interior"])
def test_needs_safe_dtype(family: str, tmp_path: Path) -> None:
    """With `needs` it is staged; config.json and the top of the card say so, and SafeAutoModel is right, in float16."""
    source = saved(family, tmp_path / "source")
    found = stage(source, tmp_path / "staged", dtype="float16", base="org/base", license="mit", needs="safe_dtype")
    assert check(found.folder) == []
    evidence = found.evidence
    assert evidence.plain.beyond
    ours = evidence.safe_dtype
    assert (ours.loaded_in, ours.ended_in, ours.nonfinite, ours.beyond) == ("float16", "float16", 0, None)
    noted = json.loads((found.folder / "config.json").read_text())["safe_dtype"]
    assert (noted["needs"], noted["rescale"]) == ("safe_dtype", STORED)
    card = (found.folder / "README.md").read_text()
    assert card.index("needs safe_dtype") < card.index("# org/base")
    model = SafeAutoModel.from_pretrained(found.folder, dtype="float16")
    assert (plan_of(model).stored, plan_of(model).islands) == (True, evidence.islands)
    assert evidence.rescale is not None
    assert plan_of(model).rescale == Rescale.from_dict(evidence.rescale)
    assert torch.allclose(logits(model, family), logits(engineered(family), family), atol=0.2)
    assert report(model).events == ()


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        pytest.param({"dtype": "int8"}, UnknownDtypeError, "int8", id="dtype"),
        pytest.param({"needs": "magic"}, NotPublishableError, "needs='magic' is unknown", id="needs"),
    ],
)
def test_unknown(tiny_qwen3: Path, tmp_path: Path, given: dict[str, str], error: type[Exception], match: str) -> None:
    """A dtype or a need that does not exist is an error before anything is loaded."""
    with pytest.raises(error, match=match):
        stage(tiny_qwen3, tmp_path / "staged", **given)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_config_that_transformers_refuses(tiny_qwen3: Path, tmp_path: Path) -> None:
    """A source that transformers cannot load is named as that, and nothing is left of it."""
    source = Path(shutil.copytree(tiny_qwen3, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 0}))
    with pytest.raises(CheckpointError, match=r"transformers refuses its config\.json"):
        stage(source, tmp_path / "staged", base=f"org/base@{COMMIT}")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_taken(tiny_qwen3: Path, tmp_path: Path) -> None:
    """A folder that holds something is never written to."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(NotPublishableError, match="something at that place"):
        stage(tiny_qwen3, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.txt"]


# Where it comes from


@pytest.mark.slow
def test_a_trained_model(tiny_qwen3: Path, tmp_path: Path) -> None:
    """The bundled model needs no rescale: its files are float16, and what is told comes in order."""
    told: list[str] = []
    found = stage(
        tiny_qwen3, tmp_path / "staged", dtype="float16", base="org/tiny", license="apache-2.0", progress=told.append
    )
    assert check(found.folder) == []
    assert found.evidence.rescale is None
    assert list(found.evidence.tensors) == ["float16"]
    assert found.evidence.measured_on.kind == "built-in text"
    assert told[0] == "reading the source"
    assert told[-1] == "writing down what was measured"
