"""Gauges are nouns: they count, rename, print and travel as JSON, and never touch a model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from safe_dtype.facts import (
    Gauge,
    Move,
    Part,
    Rescale,
    Rows,
    factor_of,
    gauge_from_dict,
    gauge_to_dict,
    plain_factor_of,
    summary,
)

STREAM = Gauge(
    "residual",
    (
        Move(Part.INPUT, "model.layers.0", -1),
        Move(Part.WEIGHT, "model.layers.0.down.weight", -1),
        Move(Part.OUTPUT, "model.layers.0.norm", -1),
        Move(Part.NUMBER, "model.norm.eps", -2),
    ),
)
PRODUCT = Gauge(
    "mlp",
    (
        Move(Part.WEIGHT, "model.layers.0.up.weight", -1, Rows(-2, 0.5, 1.0, 1, 2)),
        Move(Part.WEIGHT, "model.layers.0.down.weight", 1),
    ),
)
BOTH = Rescale(((STREAM, 6), (PRODUCT, 2)))


@pytest.mark.parametrize(
    ("rows", "size", "found"),
    [
        pytest.param(Rows(-2, 0.0, 1.0), 6, [0, 1, 2, 3, 4, 5], id="all"),
        pytest.param(Rows(-2, 0.5, 1.0), 6, [3, 4, 5], id="second-half"),
        pytest.param(Rows(-1, 0.0, 1 / 3), 96, list(range(32)), id="a-third-is-no-binary-fraction"),
        pytest.param(Rows(-1, 0.0, 1.0, 1, 2), 6, [1, 3, 5], id="every-second"),
        pytest.param(Rows(-1, 0.5, 1.0, 1, 3), 12, [7, 10], id="steps-within-a-half"),
        pytest.param(Rows(-1, 0.0, 1.0, 0, 2), 1, [0], id="a-step-beyond-the-end"),
        pytest.param(Rows(-1, 0.5, 0.5), 6, [], id="none"),
    ],
)
def test_rows(rows: Rows, size: int, found: list[int]) -> None:
    """Fractions name the same rows whatever the size, steps and offsets within them."""
    assert list(range(size))[rows.of(size)] == found


@pytest.mark.parametrize(("start", "stop", "size"), [(0.5, 1.0, 7), (0.0, 1 / 3, 64), (0.25, 1.0, 6), (0.0, 0.75, 2)])
def test_rows_that_do_not_fit(start: float, stop: float, size: int) -> None:
    """A fraction that falls between two rows is refused with the size."""
    with pytest.raises(ValueError, match=f"of {size} rows are no whole rows"):
        Rows(-2, start, stop).of(size)


def test_exponents_add_up() -> None:
    """What two gauges move is moved by the sum of their bits, and each power counts."""
    found = BOTH.exponents()
    assert found[Part.WEIGHT, "model.layers.0.down.weight", None] == -6 + 2
    assert found[Part.NUMBER, "model.norm.eps", None] == -12
    assert found[Part.WEIGHT, "model.layers.0.up.weight", Rows(-2, 0.5, 1.0, 1, 2)] == -2


def test_exponents_that_cancel_are_left_out() -> None:
    """What one gauge makes smaller and another one larger by as much is not multiplied at all."""
    found = BOTH.with_bits({"mlp": 6}).exponents()
    assert (Part.WEIGHT, "model.layers.0.down.weight", None) not in found
    assert len(found) == 4


def test_parts_of_one_target_are_apart() -> None:
    """What a module is given, what it returns, and rows of a weight and all of it are multiplied separately."""
    moves = (
        Move(Part.INPUT, "norm", -1), Move(Part.OUTPUT, "norm", 1), Move(Part.WEIGHT, "w", -1),
        Move(Part.WEIGHT, "w", -1, Rows(0, 0.0, 0.5)),
    )  # fmt: skip
    assert sorted(Rescale(((Gauge("g", moves), 3),)).exponents().values()) == [-3, -3, -3, 3]


@pytest.mark.parametrize("bits", [0, -3])
def test_no_bits_and_fewer(bits: int) -> None:
    """A gauge that is moved by nothing multiplies nothing; by fewer than nothing it makes larger."""
    found = Rescale(((STREAM, bits),)).exponents()
    assert found == {} if not bits else found[Part.INPUT, "model.layers.0", None] == 3


def test_with_bits() -> None:
    """Bits are given by name; gauges that are not named keep theirs, and unknown names name none."""
    found = BOTH.with_bits({"residual": 9, "nobody": 4})
    assert (found.bits("residual"), found.bits("mlp"), found.bits("nobody")) == (9, 2, 0)
    assert [gauge for gauge, _ in found.shifts] == [STREAM, PRODUCT]
    assert BOTH.bits("residual") == 6, "the old one stays as it was"


def test_renamed() -> None:
    """Every target gets its new name; rows, powers and bits stay."""
    found = BOTH.renamed(lambda name: name.removeprefix("model."))
    assert [move.target for move in found.shifts[1][0].moves] == ["layers.0.up.weight", "layers.0.down.weight"]
    assert found.renamed(lambda name: f"model.{name}") == BOTH


def test_text() -> None:
    """A rescale prints what becomes smaller and by how much."""
    assert str(BOTH) == "residual 2^-6, mlp 2^-2"
    assert str(BOTH.with_bits({"mlp": 0})) == "residual 2^-6"
    assert str(Rescale(())) == "nothing"


def test_travels_as_json() -> None:
    """What JSON makes of a rescale is read as an equal one, with the same hash."""
    found = Rescale.from_dict(json.loads(json.dumps(BOTH.to_dict())))
    assert found == BOTH
    assert hash(found) == hash(BOTH)
    assert gauge_from_dict(json.loads(json.dumps(gauge_to_dict(PRODUCT)))) == PRODUCT


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({}, id="no-shifts"),
        pytest.param({"shifts": [{"gauge": "g", "moves": []}]}, id="no-bits"),
        pytest.param({"shifts": [{"gauge": "g", "bits": "many", "moves": []}]}, id="bits-in-words"),
        pytest.param({"shifts": [{"bits": 1, "moves": []}]}, id="no-name"),
        pytest.param(
            {"shifts": [{"gauge": "g", "bits": 1, "moves": [{"part": "soul", "target": "w", "power": 1}]}]},
            id="unknown-part",
        ),
        pytest.param(
            {"shifts": [{"gauge": "g", "bits": 1, "moves": [
                {"part": "weight", "target": "w", "power": 1, "rows": {"dim": -1, "first": 0}}]}]},
            id="unknown-rows",
        ),
        pytest.param({"shifts": 3}, id="no-list"),
    ],
)  # fmt: skip
def test_what_is_no_rescale(broken: dict[str, object]) -> None:
    """A file that holds something else is told by one of the three errors that its reader names."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        Rescale.from_dict(broken)


def test_summary() -> None:
    """Layers and experts that are moved alike are one line, with their count; what differs in rows or power is not."""
    layer = Move(Part.WEIGHT, "model.layers.0.mlp.experts.3.w2.weight", -1)
    moves = [replace(layer, target=layer.target.replace("s.0.", f"s.{number}.")) for number in range(12)]
    moves += [Move(Part.INPUT, "model.layers.0", -1), Move(Part.NUMBER, "model.norm.eps", -2), PRODUCT.moves[0]]
    assert summary(Gauge("g", tuple(moves)), 1) == (
        "model.layers.*.mlp.experts.*.w2.weight 2^-1 (12)",
        "input of model.layers.* 2^-1",
        "model.norm.eps 2^-2",
        "model.layers.*.up.weight (rows 50% to 100%, no. 1 of every 2) 2^-1",
    )


@pytest.mark.parametrize("name", ["w1.weight", "layer_2.bias", "h2o"])
def test_summary_keeps_numbers_in_words(name: str) -> None:
    """Only a number of its own is a layer's: `w1` and `w2` stay apart."""
    gauge = Gauge("g", (Move(Part.WEIGHT, f"blocks.0.{name}", 1),))
    assert summary(gauge, 1) == (f"blocks.*.{name} 2^+1",)


def test_summary_tells_the_factors() -> None:
    """A line has the power of two that a weight is multiplied by, not that of one bit of its gauge."""
    gauge = Gauge("mlp", (Move(Part.WEIGHT, "up", -1), Move(Part.WEIGHT, "down", 1), Move(Part.NUMBER, "eps", -2)))
    assert summary(gauge, 8) == ("up 2^-8", "down 2^+8", "eps 2^-16")


@pytest.mark.parametrize(
    ("bits", "power", "plain"), [(8, "2^-8", "1/256"), (14, "2^-14", "1/16,384"), (-3, "2^3", "8"), (0, "2^0", "1/1")]
)
def test_factors_as_people_write_them(bits: int, power: str, plain: str) -> None:
    """Bits that make numbers larger, as a recipe of somebody else may have them, are no negative bits of a negative power."""
    assert (factor_of(bits), plain_factor_of(bits)) == (power, plain)
    assert str(Rescale(((STREAM, bits or 1),))) == f"residual {factor_of(bits or 1)}"
