"""What runs code when it is loaded is told from what does not, and what was made here from what was not."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optimizing.form_models import Mlp

from safe_dtype.errors import NotOptimizedError, UntrustedFolderError
from safe_dtype.facts import FLOAT32
from safe_dtype.optimizing.attempts.load_model import save_module
from safe_dtype.optimizing.forms import aoti, export, torchscript
from safe_dtype.optimizing.nouns.form import BuildRequest
from safe_dtype.optimizing.nouns.job import Dynamic
from safe_dtype.optimizing.nouns.record import Batch, FormAttempt, Optimization, Outcome
from safe_dtype.optimizing.serving import trust
from safe_dtype.optimizing.serving.trust import content_of, remember_made, require_paths, require_trust
from safe_dtype.store.hashing import sha256_of

NATIVE, PROGRAM, TRACE = (form.FORM.files[0].content for form in (aoti, export, torchscript))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is made here be noted apart from the user's cache."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


def archive(file: Path, *members: str) -> Path:
    """Write an archive as torch does, with one folder at the top."""
    with zipfile.ZipFile(file, "w") as out:
        for name in members:
            out.writestr(f"model/{name}", b"")
    return file


def record_with(*attempts: FormAttempt, model_class: str = "ViTModel", original: str = "original") -> Optimization:
    """Return a record with these attempts."""
    return Optimization(
        "tiny", model_class, "cpu", "auto", "auto", "float32", original=original, attempts=attempts, chosen=0
    )


def attempt_with(files: dict[str, str], **more: object) -> FormAttempt:
    """Return a verified attempt with these files."""
    made = FormAttempt("export", FLOAT32, Outcome.VERIFIED, artifact="attempts/00/artifact", artifact_files=files)
    return replace(made, **more)  # type: ignore[arg-type]


@pytest.mark.needs("torch>=2.13")
def test_program_says_what_it_is(tmp_path: Path) -> None:
    """A program of torch.export is known by its members, and a pickled module by its own."""
    export.build(BuildRequest(Mlp().eval(), {"x": torch.ones(2, 16)}, tmp_path, Dynamic()))
    assert content_of(tmp_path / "model.pt2") == PROGRAM
    save_module(Mlp(), tmp_path / "model.pt")
    assert content_of(tmp_path / "model.pt") == trust.PICKLE


@pytest.mark.parametrize(
    ("members", "content"),
    [
        pytest.param(("data/aotinductor/model/c.wrapper.so", "archive_format"), NATIVE, id="aoti"),
        pytest.param(("models/model.json", "data/sample_inputs/model.pt"), PROGRAM, id="export"),
        pytest.param(("code/__torch__/m.py", "data.pkl", "constants.pkl"), TRACE, id="torchscript"),
        pytest.param(("data.pkl", "data/0"), trust.PICKLE, id="pickle"),
        pytest.param(("models/model.json", "data/aotinductor/model/c.so"), trust.UNKNOWN, id="two-at-once"),
        pytest.param(("readme.txt",), trust.UNKNOWN, id="neither"),
    ],
)
def test_contents(members: tuple[str, ...], content: str, tmp_path: Path) -> None:
    """Each kind of archive has members that no other has; one with the marks of two is none."""
    assert content_of(archive(tmp_path / "model.pt2", *members)) == content


def test_wrong_content(tmp_path: Path) -> None:
    """A file that is not what its name says is refused even with trust: another loader would do another thing."""
    file = archive(tmp_path / "model.pt2", "data/aotinductor/model/c.so")
    with pytest.raises(NotOptimizedError, match=r"model\.pt2 should be a program of torch\.export.*native code"):
        require_trust(tmp_path, {"model.pt2": sha256_of(file)}, trust=True)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.json", "model.onnx.data", "weights.safetensors"])
def test_no_code(name: str, tmp_path: Path) -> None:
    """Weights, graphs and recipes need no trust."""
    (tmp_path / name).write_bytes(b"numbers")
    require_trust(tmp_path, {name: sha256_of(tmp_path / name)}, trust=False)


@pytest.mark.parametrize("name", ["model.bin", "model.so", "model.ONNX", "model"])
def test_unknown_file(name: str, tmp_path: Path) -> None:
    """A file of a kind that is not known is taken for code."""
    (tmp_path / name).write_bytes(b"numbers")
    with pytest.raises(UntrustedFolderError, match="a file of unknown content"):
        require_trust(tmp_path, {name: sha256_of(tmp_path / name)}, trust=False)


def test_nothing_is_unpickled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Looking at a foreign file runs nothing of it."""
    (tmp_path / "model.pt").write_bytes(pickle.dumps(_Prints()))
    with pytest.raises(
        UntrustedFolderError, match=r"holds a pickled module \(model\.pt\), and it was not made on this"
    ):
        require_trust(tmp_path, {"model.pt": sha256_of(tmp_path / "model.pt")}, trust=False)
    assert capfd.readouterr().out == ""
    pickle.loads((tmp_path / "model.pt").read_bytes())
    assert capfd.readouterr().out == "ran\n", "the file would have run"


class _Prints:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_made_here(tmp_path: Path) -> None:
    """What was noted when it was made needs no trust, wherever it is moved to; the same name with other content does."""
    first = tmp_path / "out/attempts/00/artifact"
    first.mkdir(parents=True)
    sha256 = sha256_of(archive(first / "model.pt2", "models/model.json"))
    with pytest.raises(UntrustedFolderError):
        require_trust(first, {"model.pt2": sha256}, trust=False)
    remember_made(tmp_path / "out", record_with(attempt_with({"model.pt2": sha256})))
    require_trust(first, {"model.pt2": sha256}, trust=False)
    moved = (tmp_path / "out").rename(tmp_path / "moved") / "attempts/00/artifact"
    require_trust(moved, {"model.pt2": sha256}, trust=False)
    other = sha256_of(archive(moved / "model.pt2", "models/model.json", "data/sample_inputs/model.pt"))
    with pytest.raises(UntrustedFolderError):
        require_trust(moved, {"model.pt2": other}, trust=False)


def test_pickled_original(tmp_path: Path) -> None:
    """The original of a plain module is noted as well."""
    (tmp_path / "original").mkdir()
    save_module(Mlp(), tmp_path / "original/model.pt")
    found = record_with(model_class="", original="original/model.pt")
    files = {found.original: trust.original_sha256(tmp_path, found)}
    with pytest.raises(UntrustedFolderError, match="a pickled module"):
        require_trust(tmp_path, files, trust=False)
    remember_made(tmp_path, found)
    require_trust(tmp_path, files, trust=False)
    with pytest.raises(NotOptimizedError, match="was changed since"):
        require_trust(tmp_path, {found.original: "0" * 64}, trust=True)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    """Where nothing can be noted, the log says that loading will need trust."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "file"))
    remember_made(tmp_path, record_with(attempt_with({"model.pt2": "0" * 64})))
    assert "loading it will need trust=True" in caplog.text


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../other/model.pt2", "a/../../b", "C:\\models\\m.pt2", "a\\..\\..\\b"]
)
@pytest.mark.parametrize("where", ["original", "file", "batch", "artifact", "log", "artifact file"])
def test_paths_that_lead_out(where: str, path: str, tmp_path: Path) -> None:
    """No path in a record may lead out of its folder, in the notation of any system."""
    found = record_with(attempt_with({"model.pt2": ""}))
    require_paths(tmp_path, found)
    wrong = {
        "original": lambda: replace(found, original=path),
        "file": lambda: replace(found, files={path: ""}),
        "batch": lambda: replace(found, batches=(Batch("traced", path),)),
        "artifact": lambda: replace(found, attempts=(attempt_with({}, artifact=path),)),
        "log": lambda: replace(found, attempts=(attempt_with({}, log=path),)),
        "artifact file": lambda: replace(found, attempts=(attempt_with({path: ""}),)),
    }
    with pytest.raises(NotOptimizedError, match="which is outside of it"):
        require_paths(tmp_path, wrong[where]())


def test_links_that_lead_out(tmp_path: Path) -> None:
    """A link to somewhere else is no part of the folder."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "original").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotOptimizedError, match="a link to something outside of it"):
        require_paths(out, record_with())


@pytest.mark.parametrize(
    "remedy", ["attn_implementation=owner/kernel", "attn_implementation=owner/kernel:main", "run"]
)
def test_remedy_that_runs_code(remedy: str, tmp_path: Path) -> None:
    """A remedy that would fetch and run a kernel from the Hub is none that `optimize` writes."""
    require_paths(tmp_path, record_with(attempt_with({}, remedies=("attn_implementation=sdpa",))))
    with pytest.raises(NotOptimizedError, match="no remedy"):
        require_paths(tmp_path, record_with(attempt_with({}, remedies=(remedy,))))
