"""What was staged earlier is published again only where it is what is asked for now."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from publishing.loopback import LoopbackHub
from publishing.variant import BASE, evidence, settled, staged

from safe_dtype.errors import NotPublishableError, UnknownDtypeError
from safe_dtype.publishing.staging.evidence import MeasuredOn, read_evidence, write_evidence
from safe_dtype.publishing.staging.reuse import SourceState, is_intact, outdated, require_asked, source_state

COMMIT, LATER = str(BASE.revision), "f" * 40
TEXT = "A text of one's own."
HUB = SourceState("org/model", "org/model", COMMIT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that was staged of org/model, in float16."""
    return staged(tmp_path / "stage")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"dtype": None, "base": None, "license": None, "max_drift": None}, id="left-open"),
        pytest.param({"dtype": "fp16"}, id="dtype-by-a-short-name"),
        pytest.param({"base": f"org/model@{COMMIT}", "license": "mit"}, id="base"),
        pytest.param({"max_drift": 0.5}, id="a-wider-limit"),
        pytest.param({"source_revision": COMMIT}, id="its-commit"),
        pytest.param({"needs": "safe_dtype"}, id="needs-what-turned-out-not-to-be-needed"),
    ],
)
def test_as_asked(folder: Path, options: dict[str, Any]) -> None:
    """What it is, and what is left open."""
    require_asked(folder, options)
    assert outdated(folder, HUB, options) == ""


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        pytest.param({"dtype": "bfloat16"}, "it is in float16, and dtype='bfloat16' is asked for", id="dtype"),
        pytest.param({"license": "apache-2.0"}, "its license is 'mit'", id="license"),
        pytest.param({"base": "evil/other"}, "its base is org/model, and base='evil/other'", id="base"),
        pytest.param({"max_drift": 0.0}, "its drift was held to 0.02, and max_drift=0.0", id="limit"),
        pytest.param({"text": TEXT}, r"measured on another text \(built-in text\)", id="text"),
    ],
)
def test_not_as_asked(folder: Path, options: dict[str, Any], difference: str) -> None:
    """Another variant than the one that is asked for is refused, in the words of the option, and stays as it is."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for check in (lambda: require_asked(folder, options), lambda: outdated(folder, HUB, options)):
        with pytest.raises(NotPublishableError, match=difference) as raised:
            check()
        assert raised.value.state == "not-started"
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_differences_at_once(folder: Path) -> None:
    """Every difference is named, not the first alone."""
    with pytest.raises(NotPublishableError, match=r"bfloat16.*apache.*max_drift.*evil"):
        require_asked(folder, {"dtype": "bfloat16", "license": "apache-2.0", "max_drift": 0.01, "base": "evil/other"})


def test_other_commit(folder: Path) -> None:
    """A staged folder is of its commit: another one is refused where it is given as the source."""
    for options in ({"source_revision": LATER}, {"base": f"org/model@{LATER}"}):
        with pytest.raises(NotPublishableError, match=f"made of the commit {COMMIT}, and {LATER} is asked for"):
            require_asked(folder, options)


def test_moved_branch(hub: LoopbackHub, tmp_path: Path) -> None:
    """A branch is the commit that it is at now."""
    first = hub.push("org/model", {"config.json": b"{}"})
    folder = staged(tmp_path / "stage", base=replace(BASE, revision=first))
    require_asked(folder, {"source_revision": "main"})
    hub.push("org/model", {"config.json": b"{ }"})
    with pytest.raises(NotPublishableError, match="and main is asked for"):
        require_asked(folder, {"source_revision": "main"})
    assert "org/model was at" in outdated(folder, source_state("org/model", {}), {})
    assert outdated(folder, source_state("org/model", {"source_revision": first}), {}) == ""


def test_own_text(tmp_path: Path) -> None:
    """A text is known by its hash."""
    digest = sha256(TEXT.encode()).hexdigest()
    folder = staged(tmp_path / "stage", measured_on=MeasuredOn("own text", digest, 4))
    require_asked(folder, {"text": TEXT})
    with pytest.raises(NotPublishableError, match="another text"):
        require_asked(folder, {"text": TEXT + " "})


def test_need_that_is_not_asked_for(tmp_path: Path) -> None:
    """What needs safe_dtype is published where the folder itself is named; of its source, only where that is said."""
    folder = staged(tmp_path / "stage", needs="safe_dtype")
    require_asked(folder, {})
    assert outdated(folder, HUB, {"needs": "safe_dtype"}) == ""
    with pytest.raises(NotPublishableError, match="needs='safe_dtype', which is not asked for"):
        outdated(folder, HUB, {})


def test_unknown_dtype(folder: Path) -> None:
    """A dtype that does not exist is an error, as in staging."""
    with pytest.raises(UnknownDtypeError):
        require_asked(folder, {"dtype": "float15"})


def test_of_another_source(folder: Path) -> None:
    """A folder that was staged of another model stays."""
    with pytest.raises(NotPublishableError, match="made of org/model, and not of org/other"):
        outdated(folder, SourceState("org/other", "org/other", LATER), {})


def test_of_optimize(folder: Path) -> None:
    """The dtype that `optimize` chose counts as asked for, unless another one is."""
    write_evidence(replace(evidence(plan={"source": "tiny"}, source_sha256="a"), files={}), folder)
    settled(folder)
    chosen = SourceState("tiny", sha256="a", dtype="bfloat16")
    with pytest.raises(NotPublishableError, match="dtype='bfloat16' is asked for"):
        outdated(folder, chosen, {})
    assert outdated(folder, chosen, {"dtype": "float16"}) == ""


def test_changed_folder(tmp_path: Path) -> None:
    """A folder is known by what its files hold, wherever the variant was staged; hidden files do not count."""
    source = tmp_path / "tiny"
    source.mkdir()
    (source / "config.json").write_text("{}")
    now = source_state(source, {"base": "org/model"})
    folder = staged(
        tmp_path / "stage", plan={"source": "tiny"}, source_sha256=now.sha256, base=replace(BASE, revision=None)
    )
    assert outdated(folder, source_state(source, {"base": "org/model"}), {"base": "org/model"}) == ""
    (source / ".DS_Store").write_bytes(b"\0")
    assert outdated(folder, source_state(source, {}), {}) == ""
    (source / "README.md").write_text("---\nlicense: other\n---\n")
    assert "the files of tiny are not those" in outdated(folder, source_state(source, {}), {})
    assert f"org/model was at None, and is at {LATER}" in outdated(
        folder, source_state(source, {"base": f"org/model@{LATER}"}), {}
    )


def test_evidence_of_earlier_versions(folder: Path) -> None:
    """Evidence without the hash of its source is read; of a folder it cannot say that it is still the same."""
    file = folder / "safe_dtype.json"
    record = json.loads(file.read_text())
    del record["source_sha256"]
    file.write_text(json.dumps(record | {"plan": {"source": "tiny"}}))
    assert read_evidence(folder).source_sha256 is None
    assert "the files of tiny" in outdated(folder, SourceState("tiny", sha256="a"), {})


def test_intact(folder: Path) -> None:
    """Every file counts but the card, which is made anew for each target."""
    assert is_intact(folder)
    (folder / "README.md").write_text("")
    assert is_intact(folder)
    (folder / "notes.txt").write_text("mine")
    assert not is_intact(folder)
    (folder / "notes.txt").unlink()
    (folder / "safe_dtype.json").write_text("{")
    assert not is_intact(folder)
