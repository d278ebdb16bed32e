"""A form that cannot be used, here or on these inputs, is stood in for by the original."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optimizing.form_models import Branch, Mlp
from optimizing.made import (
    INPUTS,
    Averaged,
    Logarithm,
    Positives,
    Shifted,
    expected,
    inductor,
    missing_here,
    optimized,
)

from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.optimizing.environment import hashes
from safe_dtype.optimizing.nouns.record_file import read_record, write_record
from safe_dtype.optimizing.serving.optimized import GIVEN_UP_AFTER, load_optimized

pytestmark = pytest.mark.usefixtures("own_cache")


def test_given_up(tmp_path: Path) -> None:
    """A form that raises where eager does not is stood in for; after three such calls it is given up for good."""
    optimized(Positives(), tmp_path / "out", "torchscript")
    loaded = load_optimized(tmp_path / "out")
    other = {"x": INPUTS["x"].abs()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(GIVEN_UP_AFTER):
            assert not loaded.given_up
            torch.testing.assert_close(loaded(**other), expected(Positives(), other))
    first, last = (str(one.message) for one in warned)
    assert first.startswith("torchscript in float32 could not run (")
    assert "that was failure 3, and the form is given up. Eager on the original weights answers every call" in last
    assert loaded.given_up
    torch.testing.assert_close(loaded(**INPUTS), expected(Positives(), INPUTS))
    assert repr(loaded).startswith("<Optimized tiny as torchscript in float32 on cpu, now eager: ")


def test_not_finite(tmp_path: Path) -> None:
    """A form that answers NaN where eager does not is stood in for, and given up for good after three calls."""
    optimized(Shifted(), tmp_path / "out", "torchscript")
    loaded = load_optimized(tmp_path / "out")
    assert loaded(**INPUTS)["output"].isfinite().all()
    with pytest.warns(SafeDtypeWarning, match="answered NaN or infinity in output where eager does not"):
        answer = loaded(x=INPUTS["x"] - 2)
    torch.testing.assert_close(answer, expected(Shifted(), {"x": INPUTS["x"] - 2}))


def test_infinite_in_eager_too(tmp_path: Path) -> None:
    """NaN and infinity that eager answers as well are the model's own; eager is asked about -inf once."""
    optimized(Logarithm(), tmp_path / "out", "torchscript")
    loaded = load_optimized(tmp_path / "out")
    inputs = {"x": torch.zeros(2, 16)}
    assert loaded(**inputs)["output"].isneginf().all()
    calls: list[object] = []
    loaded.eager().register_forward_hook(lambda *_: calls.append(_))
    assert loaded(**inputs)["output"].isneginf().all()
    assert not calls
    assert loaded(x=torch.full((2, 16), torch.nan))["output"].isnan().all()
    assert len(calls) == 1
    assert loaded.fell_back == ""


def test_hidden_row(tmp_path: Path) -> None:
    """A mask that hides a row whole, as no verified one did, is answered by eager, and the form stays in use."""
    mask = torch.tensor([[1, 1], [1, 0]])
    record = optimized(Averaged(), tmp_path / "out", "torchscript", inputs={"mask": mask})
    traced = replace(record.batches[0], tensors={"mask": record.batches[0].tensors["mask"] | {"hides_a_row": False}})
    write_record(replace(record, batches=(traced,)), tmp_path / "out")
    loaded = load_optimized(tmp_path / "out")
    hiding = {"mask": torch.tensor([[1, 1], [0, 0]])}
    with pytest.warns(SafeDtypeWarning, match="was not made for such inputs: a row of mask hides everything"):
        torch.testing.assert_close(loaded(**hiding), expected(Averaged(), hiding))
    loaded.fell_back = ""
    torch.testing.assert_close(loaded(mask=mask.flip(1)), expected(Averaged(), {"mask": mask.flip(1)}))
    assert not loaded.fell_back
    assert not loaded.given_up


@pytest.mark.needs("torch>=2.13")
def test_other_torch(mlp: Path) -> None:
    """A program of another version of torch is not loaded: eager takes its place, and the warning says why."""
    write_record(replace(read_record(mlp), environment={"packages": {"torch": "2.4.1"}}), mlp)
    with pytest.warns(SafeDtypeWarning, match=r"was made with torch 2\.4\.1, here is .*Next: make it again") as warned:
        loaded = load_optimized(mlp)
    assert warned[0].filename == __file__
    assert loaded.given_up
    torch.testing.assert_close(loaded(**INPUTS), expected(Mlp(), INPUTS))


@pytest.mark.needs("torch>=2.13")
def test_unloadable(mlp: Path) -> None:
    """A file that the runtime refuses, though it is the recorded one, leaves eager."""
    found = read_record(mlp)
    file = mlp / found.attempts[0].artifact / "model.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/models/model.json", "{}")
    attempt = replace(found.attempts[0], artifact_files=hashes(file.parent))
    write_record(replace(found, attempts=(attempt,)), mlp)
    with pytest.warns(SafeDtypeWarning, match=r"export in float32 could not be loaded \("):
        loaded = load_optimized(mlp, trust=True)
    torch.testing.assert_close(loaded(**INPUTS), expected(Mlp(), INPUTS))


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that cannot be built on this machine is eager, and says what is missing."""
    optimized(Mlp(), tmp_path / "out", "compile")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(SafeDtypeWarning, match=r"compile in float32 cannot be used here: it needs a C\+\+ compiler"):
        loaded = load_optimized(tmp_path / "out")
    torch.testing.assert_close(loaded(**INPUTS), expected(Mlp(), INPUTS))


@pytest.mark.needs("torch>=2.13")
@inductor
def test_unbuildable(tmp_path: Path) -> None:
    """A form that does not build on inputs that eager takes is given up at once."""
    if reason := missing_here("compile"):
        pytest.skip(reason)
    optimized(Branch(), tmp_path / "out", "compile")
    loaded = load_optimized(tmp_path / "out")
    with pytest.warns(SafeDtypeWarning, match=r"compile in float32 could not be built \(Unsupported: "):
        answer = loaded(**INPUTS)
    torch.testing.assert_close(answer, expected(Branch(), INPUTS))
    assert loaded.given_up
