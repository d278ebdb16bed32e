"""How batches of one input are drawn."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.errors import NotOptimizableError
from safe_dtype.optimizing.inputs.input_spec import PLAIN, InputKind, Shown, Slot, Variation, draw

IDS = Slot("ids", InputKind.IDS, ("batch", "length"), torch.int64, low=2, high=9, avoid=(3, 5), hidden_by="mask", padding=0)  # fmt: skip
MASK = Slot("mask", InputKind.MASK, ("batch", "length"), torch.int64)
FLAGS = Slot("flags", InputKind.FLAGS, ("batch", "length"), torch.int64)
VALUES = Slot("values", InputKind.VALUES, ("batch", 3), torch.float32)
SIZES = {"batch": 4, "length": 50}


def test_shape() -> None:
    """A named dimension has the size of the batch, a number is a size."""
    assert VALUES.shape(SIZES) == (4, 3)


def test_ids() -> None:
    """Ids are in their range without those to avoid, and the same seed draws the same ones."""
    ids = draw([IDS], SIZES, PLAIN, seed=0)["ids"]
    assert set(ids.flatten().tolist()) == {2, 4, 6, 7, 8, 9}
    assert torch.equal(ids, draw([IDS], SIZES, PLAIN, seed=0)["ids"])
    assert not torch.equal(ids, draw([IDS], SIZES, PLAIN, seed=1)["ids"])


def test_few_ids() -> None:
    """Where fewer than two ids would be left, none is avoided."""
    few = Slot("ids", InputKind.IDS, ("batch", "length"), torch.int64, low=0, high=1, avoid=(1,))
    assert set(draw([few], SIZES, PLAIN, seed=0)["ids"].flatten().tolist()) == {0, 1}


def test_repeated_id() -> None:
    """One id fills a row."""
    ids = draw([IDS], SIZES, Variation(repeated=True), seed=0)["ids"]
    assert all(len(set(row.tolist())) == 1 for row in ids)


@pytest.mark.parametrize(
    ("shown", "lengths"), [(Shown.ALL, [50] * 4), (Shown.PART, [50, 42, 34, 25]), (Shown.ONE, [1] * 4)]
)
def test_mask(shown: Shown, lengths: list[int]) -> None:
    """A mask hides nothing, more from row to row, or all but the first token; hidden ids are padding."""
    tensors = draw([IDS, MASK], SIZES, Variation(shown=shown), seed=0)
    assert tensors["mask"].sum(1).tolist() == lengths
    assert not tensors["ids"][tensors["mask"] == 0].any()
    assert tensors["ids"][tensors["mask"] == 1].all()


def test_values_stay_in_the_range_of_the_example() -> None:
    """Shifted values do not leave the range of the example, and its infinities stay."""
    example = torch.tensor([[-1.0, 0.0, 2.0], [float("-inf"), 1.0, 0.5]])
    values = Slot("values", InputKind.VALUES, ("batch", 3), torch.float32, example=example)
    drawn = draw([values], {"batch": 100}, Variation(scale=-1.0, shift=1.0), seed=0)["values"]
    finite = drawn[drawn.isfinite()]
    assert float(finite.min()) >= -1.0
    assert float(finite.max()) <= 2.0
    assert bool(drawn.isneginf().any())


def test_unknown_meaning() -> None:
    """An input of unknown meaning is the example, and cannot get another shape."""
    fixed = Slot("bias", InputKind.FIXED, ("batch", 2), torch.float32, example=torch.ones(2, 2))
    assert torch.equal(draw([fixed], {"batch": 2}, PLAIN, seed=0)["bias"], torch.ones(2, 2))
    with pytest.raises(NotOptimizableError, match=r"bias is needed in shape \(3, 2\).* from one of shape \(2, 2\)"):
        draw([fixed], {"batch": 3}, PLAIN, seed=0)


@pytest.mark.parametrize(
    ("variation", "text"),
    [
        (PLAIN, ""),
        (Variation(shift=1.0, scale=0.5), "values 0.5 of the contrast and shifted up"),
        (Variation(shift=-1.0, scale=-1.0), "values mirrored and shifted down"),
        (Variation(shown=Shown.ONE), "padded to one token, first position flagged"),
        (Variation(repeated=True), "one id repeated"),
    ],
)
def test_about(variation: Variation, text: str) -> None:
    """A variation says in words what it changes."""
    assert variation.about([IDS, MASK, FLAGS, VALUES]) == text


def test_about_other_inputs() -> None:
    """What a variation changes in inputs that are not there is not said."""
    assert Variation(shift=1.0, repeated=True).about([MASK]) == ""
