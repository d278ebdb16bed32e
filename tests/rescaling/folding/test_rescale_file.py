"""A rescue in a file beside the weights: written and read again, or refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safe_dtype.facts import Gauge, Move, Part, Rescale
from safe_dtype.rescaling.folding.rescale_file import FILE, Stored, is_noted, write_stored


def test_written_and_read() -> None:
    """What is stored is read again as it was."""
    gauge = Gauge("residual", (Move(Part.NUMBER, "model.norm.eps", -2),))
    for stored in (Stored(Rescale(((gauge, 3),), ("model.vision",)), ("a.b",), 0.02), Stored(None, (), None)):
        assert Stored.from_dict(json.loads(json.dumps(stored.to_dict()))) == stored


def stored(**changes: Any) -> dict[str, Any]:
    """Return what is written of a rescue, changed."""
    gauge = Gauge("residual", (Move(Part.NUMBER, "model.norm.eps", -2),))
    return Stored(Rescale(((gauge, 3),)), ("a.b",), 0.02).to_dict() | changes


def moved(**changes: Any) -> dict[str, Any]:
    """Return the same with its only move changed."""
    values = stored()
    values["rescale"]["shifts"][0]["moves"][0] |= changes
    return values


def shifted(bits: int) -> dict[str, Any]:
    """Return the same, moved by so many bits."""
    values = stored()
    values["rescale"]["shifts"][0]["bits"] = bits
    return values


ROWS = {"dim": -2, "start": 0.0, "stop": 0.5, "offset": 0, "step": 1}


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        pytest.param(stored(schema="safe_dtype.rescale/2"), ValueError, "its schema is", id="schema"),
        pytest.param(stored(islands="a.b"), TypeError, "no list of names", id="islands-a-text"),
        pytest.param(stored(islands=[1]), TypeError, "no list of names", id="islands-numbers"),
        pytest.param(stored(max_drift="much"), ValueError, "much", id="limit"),
        pytest.param(shifted(15), ValueError, "more than 14 bits", id="bits"),
        pytest.param(shifted(-15), ValueError, "more than 14 bits", id="bits-up"),
        pytest.param(moved(power=43), ValueError, r"more than 2\^126", id="power"),
        pytest.param(moved(target=7), TypeError, "names no target", id="target"),
        pytest.param(moved(part="module"), ValueError, "module", id="part"),
        pytest.param(moved(rows=ROWS | {"step": 0}), TypeError, "or no rows", id="step"),
        pytest.param(moved(rows=ROWS | {"dim": True}), TypeError, "or no rows", id="dim"),
        pytest.param(moved(rows=ROWS | {"stop": "1"}), TypeError, "or no rows", id="stop"),
    ],
)
def test_refused(values: dict[str, Any], error: type[Exception], words: str) -> None:
    """What could go wrong later is refused when it is read."""
    with pytest.raises(error, match=words):
        Stored.from_dict(values)


@pytest.mark.parametrize(
    "values", [shifted(14), shifted(-14), moved(power=42), moved(rows=ROWS)], ids=["bits", "up", "power", "rows"]
)
def test_at_the_limit(values: dict[str, Any]) -> None:
    """What is just allowed is read as it was written."""
    assert Stored.from_dict(values).to_dict() == values


def test_beside_the_weights(tmp_path: Path) -> None:
    """The file is written and noted in config.json, of which all else stays."""
    (tmp_path / "config.json").write_text('{"b": "ä", "safe_dtype": {"needs": "x"}, "a": 1}', encoding="utf-8")
    rescue = Stored.from_dict(stored())
    assert not is_noted(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    write_stored(rescue, tmp_path)
    assert Stored.from_dict(json.loads((tmp_path / FILE).read_text(encoding="utf-8"))) == rescue
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert is_noted(config)
    assert config == {"a": 1, "b": "ä", "safe_dtype": {"needs": "x", "rescale": FILE}}


@pytest.mark.parametrize("ours", [None, "safe_dtype_rescale.json", {}, {"rescale": "other.json"}, {"rescale": None}])
def test_not_noted(ours: object) -> None:
    """A config that says something else names no file of ours."""
    assert not is_noted({"safe_dtype": ours})
    assert not is_noted({})
