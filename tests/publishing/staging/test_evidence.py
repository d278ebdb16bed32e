"""What is known of a variant is written to safe_dtype.json, and comes back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from publishing.variant import BASE, evidence, fidelity

from safe_dtype.errors import NotPublishableError
from safe_dtype.publishing.staging.evidence import Evidence, Forms, TriedForm, read_evidence, write_evidence


def test_evidence_comes_back() -> None:
    """What was written is read back equal, infinities included."""
    forms = Forms((TriedForm("eager", "float16", 0.0, None),), 0, "cpu")
    plain = fidelity("transformers", kl=(0.5, math.inf))
    drift = replace(plain.drift, heads=(("pred_boxes", replace(plain.drift, rel_rms=math.inf)),))
    made = evidence(plain=replace(plain, drift=drift), forms=forms)
    assert Evidence.from_dict(made.to_dict()) == made


def test_the_file(tmp_path: Path) -> None:
    """The file is strict JSON, and its drift lies where readers look for it."""
    written = evidence(plain=fidelity("transformers", kl=(math.nan, math.inf)))
    write_evidence(written, tmp_path)
    record = json.loads((tmp_path / "safe_dtype.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert record["schema"] == "safe_dtype.variant/1"
    assert record["drift"]["plain"]["kl"] == ["inf", "inf"]
    assert record["drift"]["safe_dtype"]["kl_mean"] == written.safe_dtype.drift.kl_mean
    assert read_evidence(tmp_path).plain.kl == (math.inf, math.inf)


@pytest.mark.parametrize("text", [None, "no json", "[]", "{}", '{"schema": "safe_dtype.variant/1"}'])
def test_no_evidence(tmp_path: Path, text: str | None) -> None:
    """A file that is missing, or is something else, is said to be that."""
    if text is not None:
        (tmp_path / "safe_dtype.json").write_text(text)
    with pytest.raises(
        NotPublishableError, match=r"safe_dtype\.json cannot be read|there is no safe_dtype\.json in it"
    ):
        read_evidence(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"base": replace(BASE, repo=None)}, "its base is a folder", id="a-folder"),
        pytest.param({"base": replace(BASE, repo="no-slash")}, "no repository of the Hub", id="no-name"),
        pytest.param({"base": replace(BASE, revision="main")}, "no commit of 40", id="a-branch"),
        pytest.param({"base": replace(BASE, license=None)}, "license is not known", id="no-license"),
        pytest.param({"needs": "magic"}, "neither null nor", id="needs"),
        pytest.param({"plain": fidelity("transformers", beyond="too far")}, "`needs` is not set", id="plain"),
        pytest.param({"safe_dtype": fidelity("safe_dtype", beyond="too far")}, "something else (too far)", id="ours"),
    ],
)
def test_problems(changes: dict[str, object], words: str) -> None:
    """Each thing that keeps a variant from being published is one sentence."""
    assert evidence().problems() == []
    (problem,) = evidence(**changes).problems()
    assert words in problem
