"""What is written down beside the figures of a variant."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from factories import AMPERE, RESIDUAL, checkpoint, drift, rescued

from safe_dtype.facts import BFLOAT16, FLOAT16, HalfRange, Rescale, TensorFacts
from safe_dtype.planning import Plan, Policy, make_plan
from safe_dtype.publishing.staging.config_note import (
    bytes_of,
    device_to_dict,
    note_in_config,
    rescale_to_dict,
    store_rescue,
    versions,
)
from safe_dtype.rescaling.folding.rescale_file import FILE, Stored
from safe_dtype.rescaling.for_plain import Folded

RESCALE = Rescale(((RESIDUAL, 5),))


def plan(**changes: object) -> Plan:
    """Return a plan to run in float16."""
    return replace(make_plan(AMPERE, checkpoint(BFLOAT16), Policy(), ordered=FLOAT16), **changes)


def written(folder: Path) -> dict[str, object]:
    """Return our key of config.json."""
    found: dict[str, object] = json.loads((folder / "config.json").read_text())["safe_dtype"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config.json that was saved by us before, and says so."""
    (tmp_path / "config.json").write_text('{"dtype": "float16", "safe_dtype": {"rescale": "from-the-base.json"}}')
    return tmp_path


@pytest.mark.parametrize("needs", [None, "safe_dtype"])
def test_note(folder: Path, needs: str | None) -> None:
    """The note says what the folder needs and who wrote it; the rest of the config stays, a note of the base does not."""
    note_in_config(folder, needs)
    assert written(folder) == {"version": version("safe-dtype"), "needs": needs}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


def test_note_with_a_rescue(folder: Path) -> None:
    """Where a rescue lies beside the weights, the note names its file."""
    store_rescue(folder, plan(rescale=RESCALE, islands=("model.layers.0.mlp",)), None)
    note_in_config(folder, None)
    assert written(folder)["rescale"] == FILE
    stored = Stored.from_dict(json.loads((folder / FILE).read_text()))
    assert (stored.rescale, stored.islands) == (RESCALE, ("model.layers.0.mlp",))


@pytest.mark.parametrize(("half", "within"), [(rescued(), True), (rescued(drift=drift(5.0)), False)])
def test_how_far_a_rescue_drifts(folder: Path, half: HalfRange, within: bool) -> None:
    """The limit is written down where the drift was within it, and left out where the rescue is beyond it."""
    rescued_plan = make_plan(AMPERE, checkpoint(BFLOAT16, half=half), Policy(), ordered=FLOAT16)
    store_rescue(folder, replace(rescued_plan, rescale=RESCALE), None)
    stored = Stored.from_dict(json.loads((folder / FILE).read_text()))
    assert stored.max_drift == (Policy().max_drift if within else None)


@pytest.mark.parametrize(
    ("changes", "folded"),
    [
        pytest.param({}, None, id="no-rescue"),
        pytest.param({"rescale": RESCALE}, Folded(RESCALE, {}, untied=False), id="in-the-files"),
    ],
)
def test_nothing_to_store(folder: Path, changes: dict[str, object], folded: Folded | None) -> None:
    """Where safe_dtype has nothing to do to the weights, no file says so."""
    store_rescue(folder, plan(**changes), folded)
    assert not (folder / FILE).exists()


def test_rescale() -> None:
    """The moves say whether the files hold them; without moves there is nothing to say."""
    assert rescale_to_dict(plan(), None) is None
    for folded in (None, Folded(RESCALE, {"rms_norm_eps": 1e-9}, untied=True)):
        values = rescale_to_dict(plan(rescale=RESCALE), folded)
        assert values is not None
        assert values["folded"] is (folded is not None)
        assert values["config"] == ({} if folded is None else {"rms_norm_eps": 1e-9})
        assert values["untied"] is (folded is not None)
        assert Rescale.from_dict(values) == RESCALE


def test_bytes() -> None:
    """Weights count by the size of their dtype, what is no float by one byte a number."""
    tensors = (
        TensorFacts("a", "float32", (2, 3), "m"), TensorFacts("b", "bfloat16", (5,), "m"), TensorFacts("c", "uint8", (7,), "m"),
    )  # fmt: skip
    assert bytes_of(replace(checkpoint(BFLOAT16), tensors=tensors)) == 6 * 4 + 5 * 2 + 7


def test_device() -> None:
    """A device is its product's name and its verdicts, and nothing that tells one machine from another."""
    values = device_to_dict(AMPERE)
    assert set(values) == {"name", "device", "capability", "driver", "verdicts"}
    assert {"dtype": "float16", "op": "matmul", "kind": "native"}.items() <= next(
        verdict for verdict in values["verdicts"] if verdict["dtype"] == "float16"
    ).items()
    assert json.loads(json.dumps(values)) == values


def test_versions() -> None:
    """Everything that the figures depend on has its version."""
    assert set(versions()) == {"safe_dtype", "torch", "transformers", "safetensors", "python"}
    assert all(versions().values())
