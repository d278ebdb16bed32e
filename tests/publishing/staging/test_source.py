"""Where a variant is made from ends as a folder, with what its own card says of it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engineered import saved
from publishing.client import in_child
from publishing.loopback import LoopbackHub

from safe_dtype.errors import CheckpointNotFoundError, NotOptimizedError, NotPublishableError
from safe_dtype.facts import BFLOAT16
from safe_dtype.optimizing.environment import hashes
from safe_dtype.optimizing.nouns.record import FormAttempt, Optimization, Outcome, Seconds
from safe_dtype.optimizing.nouns.record_file import read_record, write_record
from safe_dtype.publishing.staging.evidence import Forms, TriedForm
from safe_dtype.publishing.staging.source import VariantSource, source_of


def test_license_is_never_guessed(tiny_qwen3: Path, tmp_path: Path) -> None:
    """A base without a license in its card has none, unless it is given; one that has is not given another."""
    assert source_of(tiny_qwen3, revision=None, base=None, license=None).base.license is None
    assert source_of(tiny_qwen3, revision=None, base=None, license="mit").base.license == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    with pytest.raises(NotPublishableError, match="card of the base says 'gemma'"):
        source_of(tmp_path, revision=None, base=None, license="mit")


def test_card_in_another_encoding(tmp_path: Path) -> None:
    """The license is read from a card that is no UTF-8 as well."""
    (tmp_path / "README.md").write_bytes("---\r\nlicense: mit\r\n---\r\n# Größe\r\n".encode("latin-1"))
    assert source_of(tmp_path, revision=None, base=None, license=None).base.license == "mit"


@pytest.mark.slow
def test_from_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    """A repository is staged from the commit that its branch was at, with the license of its card."""
    source = saved("llama", tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: own\n---\n")
    hub.push("org/llama", {one.name: one.read_bytes() for one in source.iterdir()})
    code = """
import sys
from safe_dtype.publishing.staging.stage import stage
from safe_dtype.publishing.staging.check import check
found = stage("org/llama", sys.argv[1], dtype="bfloat16")
base = found.evidence.base
print(base.repo, base.revision, base.license, base.license_name, found.evidence.plan["source"], check(found.folder))
"""
    printed = in_child(hub, code, tmp_path / "staged").splitlines()[-1]
    assert printed == f"org/llama {hub.commits('org/llama')[0][0]} other own org/llama []"


@pytest.fixture
def made(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """What `optimize` left of a model, with an ONNX file as the form that it chose."""
    folder = tmp_path / "made"
    shutil.copytree(tiny_qwen3, folder / "original")
    (folder / "artifact").mkdir()
    (folder / "artifact" / "model.onnx").write_bytes(b"a graph")
    attempt = FormAttempt(
        "onnx", BFLOAT16, Outcome.VERIFIED, seconds=Seconds(run=0.5, eager=1.0), artifact="artifact",
        artifact_files=hashes(folder / "artifact"),
    )  # fmt: skip
    failed = FormAttempt("aoti", BFLOAT16, Outcome.FAILED, "no compiler")
    record = Optimization(
        "tiny-qwen3", "Qwen3ForCausalLM", "cpu", "auto", "auto", "bfloat16", attempts=(failed, attempt), chosen=1,
        files=hashes(folder / "original"),
    )  # fmt: skip
    write_record(record, folder)
    return folder


def test_what_optimize_made(made: Path, tiny_qwen3: Path, tmp_path: Path) -> None:
    """Of an optimized folder it is the original, in the dtype that was chosen, and the record goes along."""
    source = source_of(made, revision=None, base="org/tiny", license=None)
    assert (source.weights, source.dtype) == (made / "original", "bfloat16")
    staged = tmp_path / "staged"
    source.copy_beside(staged)
    assert (staged / "optimization.json").read_bytes() == (made / "optimization.json").read_bytes()
    assert (staged / "tokenizer.json").read_bytes() == (tiny_qwen3 / "tokenizer.json").read_bytes()
    assert (staged / "onnx" / "model.onnx").read_bytes() == b"a graph"
    assert source.forms() == Forms((TriedForm("onnx", "bfloat16", 0.0, 2.0, chosen=True),), 1, "cpu")


def changed_original(folder: Path) -> None:
    """Change a setting of the original."""
    (folder / "original/config.json").write_text("{}")


def changed_graph(folder: Path) -> None:
    """Put another graph in the place of the verified one."""
    (folder / "artifact/model.onnx").write_bytes(b"another")


def stolen(folder: Path) -> None:
    """Let the record name a file of this machine as part of the form."""
    (folder.parent / "secret").write_bytes(b"a key")
    record = read_record(folder)
    attempt = replace(record.attempts[1], artifact="artifact", artifact_files={"../../secret": "0"})
    write_record(replace(record, attempts=(record.attempts[0], attempt)), folder)


def original_elsewhere(folder: Path) -> None:
    """Let the record name another folder as the original."""
    write_record(replace(read_record(folder), original=str(folder.parent)), folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(changed_original, r"config\.json was changed since", id="original"),
        pytest.param(changed_graph, r"model\.onnx was changed since", id="form"),
        pytest.param(stolen, "which is outside of it", id="path-of-the-form"),
        pytest.param(original_elsewhere, "which is outside of it", id="path-of-the-original"),
    ],
)
def test_what_optimize_did_not_make(change: Callable[[Path], None], problem: str, made: Path) -> None:
    """What was changed since, or lies elsewhere, is not published as what was verified."""
    change(made)
    with pytest.raises(NotOptimizedError, match=problem):
        source_of(made, revision=None, base="org/tiny", license=None)


def test_links_out_of_the_source(tiny_qwen3: Path, tmp_path: Path) -> None:
    """A file that goes along as it is must lie in the folder: a link could publish any file of this machine."""
    (tmp_path / "secret").write_text("a key")
    shutil.copytree(tiny_qwen3, tmp_path / "model")
    (tmp_path / "model/tokenizer_config.json").unlink(missing_ok=True)
    (tmp_path / "model/tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(NotPublishableError, match=r"tokenizer_config\.json is a link to something outside"):
        source_of(tmp_path / "model", revision=None, base="org/tiny", license=None)
    (tmp_path / "model/tokenizer_config.json").unlink()
    (tmp_path / "model/tokenizer_config.json").symlink_to("config.json")
    source_of(tmp_path / "model", revision=None, base="org/tiny", license=None)


@pytest.mark.parametrize("format", ["safetensors", "pickle"])
def test_a_repository(hub: LoopbackHub, tiny_qwen3: Path, format: str) -> None:  # noqa: A002
    """Of a repository only what staging reads is downloaded; pickled weights where there are no others."""
    files = {path.name: path.read_bytes() for path in tiny_qwen3.iterdir() if path.is_file()}
    more = {"README.md": b"---\nlicense: mit\n---\n", "tf_model.h5": b"x", "pytorch_model.bin": b"x"}
    if format == "pickle":
        pickled = io.BytesIO()
        torch.save({"lm_head.weight": torch.zeros(2, 2)}, pickled)
        more["pytorch_model.bin"] = pickled.getvalue()
        files = {name: content for name, content in files.items() if "safetensors" not in name}
    commit = hub.push("org/model", files | more)
    source = source_of("org/model", revision=None, base=None, license=None)
    names = {path.name for path in source.weights.iterdir()}
    assert "tf_model.h5" not in names
    assert ("pytorch_model.bin" in names) is (format == "pickle")
    assert (source.name, source.base.repo, source.base.revision, source.base.license) == (
        "org/model", "org/model", commit, "mit",
    )  # fmt: skip


def test_no_such_repository(hub: LoopbackHub) -> None:
    """What is neither a folder nor a repository is said to be that."""
    with pytest.raises(CheckpointNotFoundError):
        source_of("org/none", revision=None, base=None, license=None)


def test_without_places(tiny_qwen3: Path) -> None:
    """What is published names the source, and no folder of this machine."""
    source: VariantSource = source_of(tiny_qwen3, revision=None, base="org/tiny@" + "a" * 40, license=None)
    values = source.without_places({"source": str(tiny_qwen3), "list": [f"{tiny_qwen3}/config.json"], "n": 1.5})
    assert values == {"source": "tiny-qwen3", "list": ["tiny-qwen3/config.json"], "n": 1.5}
    assert (source.base.repo, source.base.revision) == ("org/tiny", "a" * 40)
