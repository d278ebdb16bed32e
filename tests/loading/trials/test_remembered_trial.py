"""What was measured of a checkpoint belongs to its weights and its config: neither alone computes anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from engineered import saved

from safe_dtype import SafeAutoModelForCausalLM
from safe_dtype.facts import FLOAT16, Where
from safe_dtype.loading import Request, plan_request
from safe_dtype.loading.trials.remembered_trial import recall_trial, remember_trial
from safe_dtype.planning import Candidate, Policy
from safe_dtype.store import remember

MEASURING = "measuring whether float16 holds"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that overflows in float16."""
    return saved("llama", tmp_path_factory.mktemp("llama"))


def change_config(folder: Path, **changes: Any) -> None:
    """Write other values into config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember in a folder of this test alone."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "verdicts"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::safe_dtype.SafeDtypeWarning")
def test_another_config_is_measured_again(llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same weights with another activation reach other values; a note in the config changes nothing."""
    folder = shutil.copytree(llama, tmp_path / "model")
    measured = []
    for changes in ({}, {"transformers_version": "4.0.0"}, {"hidden_act": "relu"}, {"hidden_act": "relu"}):
        change_config(folder, **changes)
        caplog.clear()
        SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16")
        measured.append(MEASURING in caplog.text)
    assert measured[1:] == [False, True, False]  # the first may have been measured by another test


@pytest.mark.usefixtures("own_cache")
def test_entries_without_a_config_are_read(llama: Path) -> None:
    """An entry of an earlier version, which tells no config, is taken for this one's; so is one of a repository."""
    key = {"half_of": "some weights"}
    remember(key, {"half": 1})
    assert recall_trial(key, Where(llama), lambda entry: entry["half"]) == 1
    remember_trial(key, Where("org/model"), "org/model", {"half": 2})
    assert recall_trial(key, Where("org/model"), lambda entry: entry["half"]) == 2


@pytest.mark.usefixtures("own_cache")
def test_a_config_that_cannot_be_read(llama: Path, tmp_path: Path) -> None:
    """Where there is no config to compare, what was measured with one is another model's."""
    key = {"half_of": "some weights"}
    remember_trial(key, Where(llama), str(llama), {"half": 1})
    assert recall_trial(key, Where(llama), lambda entry: entry["half"]) == 1
    assert recall_trial(key, Where(tmp_path), lambda entry: entry["half"]) is None


@pytest.mark.filterwarnings("ignore::safe_dtype.SafeDtypeWarning")
def test_plan_of_another_dtype_tells_it(llama: Path) -> None:
    """What was measured of float16 stands in a plan that keeps another dtype, in place of a hint to measure it."""
    SafeAutoModelForCausalLM.from_pretrained(llama, dtype="float16")
    plan = plan_request(Request(llama, {"device_map": "cpu"}), Policy())
    assert plan.storage != FLOAT16
    (half,) = (one for one in plan.decisions if one.candidate == Candidate(FLOAT16, FLOAT16))
    assert "rescaled exactly: residual 2^-" in half.reason
    assert "did not look" not in plan.explain()
