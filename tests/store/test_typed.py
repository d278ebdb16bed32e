"""What was read from a file is of the types that its class says, or is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from safe_dtype import BFLOAT16
from safe_dtype.devices.cache import load, store
from safe_dtype.facts import (
    BlockPeak,
    Drift,
    Gauge,
    HalfRange,
    Move,
    Part,
    Rescale,
    Rows,
    Timing,
    Verdict,
    VerdictKind,
)
from safe_dtype.loading.trials.float16 import half_from_dict, half_to_dict
from safe_dtype.store import recall, remember
from safe_dtype.store.typed import listed, well_typed

KEY = {"device": "cpu"}


@dataclass(frozen=True)
class Inner:
    """A part."""

    rate: float | None
    shape: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    """Something with parts."""

    name: str
    kind: Literal["a", "b"] = "a"
    parts: tuple[Inner, ...] = ()
    is_known: bool = True


GOOD = [Outer("x"), Outer("x", "b", (Inner(None), Inner(1), Inner(math.inf))), (Outer("x"),), 1, None, True]
BAD = [
    Outer(1), Outer("x", "c"), Outer("x", parts=[Inner(1.0)]), Outer("x", parts=(1,)), Outer("x", is_known=1),
    Outer("x", parts=(Inner("1"),)), Outer("x", parts=(Inner(True),)), Outer("x", parts=(Inner(1.0, (1, 2, 3)),)),
    Outer("x", parts=(Inner(1.0, (1, 2.5)),)), Outer("x", parts=(Inner(math.nan),)), (Outer(None),), Inner(10**400),
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD)
def test_good(value: Any) -> None:
    """What is of its types comes back."""
    assert well_typed(value) is value


@pytest.mark.parametrize("value", BAD)
def test_bad(value: Any) -> None:
    """What is not is refused, at any depth."""
    with pytest.raises((TypeError, ValueError)):
        well_typed(value)


def test_listed() -> None:
    """A list is read as a tuple; a text or a table is no list."""
    assert listed([1, "a"]) == (1, "a")
    for other in ("ab", {"a": 1}, None, 1):
        with pytest.raises(TypeError):
            listed(other)


VERDICT = Verdict(BFLOAT16, "matmul", VerdictKind.SLOW, "why", 1e9, 2e9, 0.01, (Timing(1, (4, 4), 0.5),))
HALF = HalfRange(
    1e5, 1e3, (BlockPeak("layers.0", 1e5, 1e3),),
    Rescale(((Gauge("residual", (Move(Part.WEIGHT, "a.weight", 1, Rows(-1, 0.0, 0.5)),)), 6),)),
    ("mlp",), drift=Drift("tokens", 5, 0.1, 0.2, 0.9, 1.0, 0.1), certified=2e3,
)  # fmt: skip
WRONG = (None, True, -1, 1.5, "text", [], {}, [[1]], {"a": 1}, 10**400, math.nan, math.inf)


def changed_everywhere(value: Any) -> Iterator[Any]:
    """Yield plain values with one place changed, each place into each kind of nonsense, or left out."""
    yield from WRONG
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, inner in list(items):
        for other in changed_everywhere(inner):
            copied = value.copy()
            copied[place] = other
            yield copied
        copied = value.copy()
        del copied[place]
        yield copied


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    return tmp_path


def without_digest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the one file in the cache and its entry, as it was written before there was a digest."""
    (file,) = folder.iterdir()
    entry = json.loads(file.read_text())
    del entry["digest"]
    return file, entry


@pytest.mark.usefixtures("caplog")
def test_verdicts_in_any_shape(folder: Path) -> None:
    """Of verdicts that were changed anywhere, digest or not, what comes back can be used, or nothing does."""
    store(KEY, [VERDICT])
    assert load(KEY) == (VERDICT,)
    file, entry = without_digest(folder)
    digest = json.loads(file.read_text())["digest"]
    for changed in changed_everywhere(entry):
        file.write_text(json.dumps(changed))
        verdicts = load(KEY)
        assert verdicts is None or all(repr(one) and hash(one) and well_typed(one) for one in verdicts)
        if isinstance(changed, dict) and changed.get("verdicts") != entry["verdicts"]:
            file.write_text(json.dumps({**changed, "digest": digest}))
            assert load(KEY) is None


@pytest.mark.usefixtures("caplog")
def test_ranges_in_any_shape(folder: Path) -> None:
    """So it is with what was found out about float16."""
    remember(KEY, {"half": half_to_dict(HALF)})
    assert recall(KEY, lambda entry: half_from_dict(entry["half"])) == HALF
    file, entry = without_digest(folder)
    for changed in changed_everywhere(entry["half"]):
        file.write_text(json.dumps({**entry, "half": changed}))
        half = recall(KEY, lambda entry: half_from_dict(entry["half"]))
        assert half is None or (str(half) and asdict(half) and isinstance(half.peak + 1.0, float))
