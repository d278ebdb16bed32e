"""A recipe: what one owner of some weights found out about float16, for all others. Data alone, read with mistrust.

Whoever reads one proves it on the weights themselves before it is used; here is only held that it is what a recipe is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..rendering.json_numbers import json_numbers
from .drift_values import drift_from_dict, drift_to_dict
from .measured import CheckpointIdentity, Drift
from .rescale import MOST_BITS_FOR_ROOM, Part, Rescale, Rows

RECIPE_SCHEMA = "safe_dtype.recipe/1"
MOST_BYTES = 2**20  # of a file; a recipe of 126 layers takes about a tenth

_MOST_MOVES, _MOST_ISLANDS, _MOST_GAUGES, _MOST_POWER = 20_000, 1000, 200, 8
_MOST_EXPONENT = 126  # float32's
_MOST_HEADS = 100
_MOST_COSINE = 1.001  # it is rounded
_KINDS = ("tokens", "classes", "labels", "pixels", "values")
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z_0-9][\w-]*(\.[\w-]+)*", re.ASCII)  # of a module or a parameter
_LONGEST_NAME, _LONGEST_TEXT = 300, 120
_KEYS = {"schema", "weights", "rescale", "islands", "drift", "max_drift", "reference", "measured_on"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What brings a checkpoint into float16, and what was measured with that."""

    weights: tuple[str, ...]  # digests of the weights it is for, as `recipe_keys` gives them
    rescale: Rescale | None
    islands: tuple[str, ...]  # modules in float32, names as in `named_modules()`
    drift: Drift  # that its author measured; a reader measures again
    max_drift: float  # ... and held to this
    reference: str  # the dtype that the drift was measured from
    measured_on: Mapping[str, str]  # "device" and versions

    def to_dict(self) -> dict[str, Any]:
        """Return plain values of JSON. No name of the model, no path, no text and no address is among them."""
        return {
            "schema": RECIPE_SCHEMA,
            "weights": list(self.weights),
            "rescale": self.rescale.to_dict() if self.rescale else None,
            "islands": list(self.islands),
            "drift": json_numbers(drift_to_dict(self.drift)),
            "max_drift": self.max_drift,
            "reference": self.reference,
            "measured_on": dict(self.measured_on),
        }

    @staticmethod
    def from_dict(values: Any, key: str) -> Recipe:
        """Return the recipe for the weights called `key`, read from what somebody else wrote.

        Raises:
            AttributeError, KeyError, TypeError, ValueError, OverflowError: If it is no recipe, or not one for them.
        """
        if not isinstance(values, dict):
            raise TypeError("it is no table")
        if (schema := values.get("schema")) != RECIPE_SCHEMA:
            raise ValueError(
                f"its schema is {str(schema)[:40]!r}, and this version of safe_dtype reads {RECIPE_SCHEMA}"
            )
        if others := set(values) - _KEYS:
            raise ValueError(f"it has {str(min(others))[:40]!r}, which no recipe has")
        weights = tuple(_matching(one, _HASH, 64) for one in _list(values["weights"], 2))
        if key not in weights:
            raise ValueError("it is for other weights")
        rescale = None if values["rescale"] is None else _rescale(values["rescale"])
        islands = _islands(values["islands"])
        if rescale is None and not islands:
            raise ValueError("it changes nothing")
        max_drift = values["max_drift"]
        if not _is_number(max_drift) or not 0 <= max_drift < float("inf"):
            raise ValueError("max_drift is no number from 0 on")
        measured_on = {_text(name): _text(value) for name, value in dict(values["measured_on"]).items()}
        drift = _drift(values["drift"])
        return Recipe(weights, rescale, islands, drift, float(max_drift), _text(values["reference"]), measured_on)


def recipe_keys(identity: CheckpointIdentity | None) -> tuple[str, ...]:
    """Return the digests by which a recipe for these weights is found, the best first; none where nothing is known.

    `contents` is of files that are here (sizes and samples), `blobs` of what the Hub says of them. Two copies of the same
    weights share at least one, wherever they lie.
    """
    known = (identity.contents, identity.blobs) if identity else ()
    return tuple(digest for digest in known if digest)


def recipe_path(key: str) -> str:
    """Return where the recipe for the weights called `key` lies in a repository of recipes."""
    return f"recipes/{key[:2]}/{key}.json"


def _islands(values: Any) -> tuple[str, ...]:
    """Return names of modules of which none lies in another: each would be cast as often as it is named."""
    islands = tuple(_name(one) for one in _list(values, _MOST_ISLANDS))
    known = set(islands)
    if len(known) < len(islands):
        raise ValueError("an island is named twice")
    for island in islands:
        parts = island.split(".")
        if any(".".join(parts[:end]) in known for end in range(1, len(parts))):
            raise ValueError("an island lies in another")
    return islands


def _drift(values: Any) -> Drift:
    """Return a drift with every figure that is printed and held to a limit; those of other outputs have none inside."""
    if len(values.get("heads") or {}) > _MOST_HEADS:
        raise ValueError(f"more than {_MOST_HEADS} outputs")
    drift = drift_from_dict(values)
    for name, head in (("", drift), *drift.heads):
        _text(name)
        figures = (head.kl_mean, head.kl_p99, head.top1_agreement, head.max_abs, head.rel_rms)
        others = (head.perplexity_ratio, head.miou, head.reference_nats, head.clear_flips)
        sizes: tuple[Any, ...] = (*figures, *(one for one in others if one is not None))
        if head.kind not in _KINDS or not 0 <= head.positions < 2**63 or (head is not drift and head.heads):
            raise ValueError("its drift is none")
        if (
            any(not isinstance(one, int | float) or not one >= 0 for one in sizes)
            or not abs(head.hidden_cosine or 0) <= _MOST_COSINE
        ):
            raise ValueError("its drift has figures that none has")
    return drift


def _rescale(values: Any) -> Rescale:
    shifts = _list(values["shifts"], _MOST_GAUGES)
    moves = [move for shift in shifts for move in _list(shift["moves"], _MOST_MOVES)]
    if not 0 < len(moves) <= _MOST_MOVES:
        raise ValueError(f"it has {len(moves):,} moves")
    for move in moves:
        _check_move(move)
    for shift in shifts:
        if not _text(shift["gauge"]):
            raise ValueError("a gauge has no name")
        if type(shift["bits"]) is not int or not 0 <= shift["bits"] <= MOST_BITS_FOR_ROOM:
            raise ValueError(
                f"it moves by {shift['bits']!r} bits, and 0 to {MOST_BITS_FOR_ROOM} are taken from others"
            )
    for name in _list(values["unproven"], _MOST_ISLANDS):
        _name(name)
    rescale = Rescale.from_dict(values)
    if any(abs(exponent) > _MOST_EXPONENT for exponent in rescale.exponents().values()):
        raise ValueError(f"it multiplies by more than 2^{_MOST_EXPONENT}")
    return rescale


def _check_move(move: Any) -> None:
    Part(move["part"])
    _name(move["target"])
    if type(move["power"]) is not int or abs(move["power"]) > _MOST_POWER:
        raise ValueError(f"a power of {move['power']!r}")
    rows = move.get("rows")
    if rows is None:
        return
    made = Rows(**rows)
    whole = all(type(one) is int and abs(one) < 2**31 for one in (made.dim, made.offset, made.step))
    if not whole or made.step < 1 or not all(_is_number(end) and 0 <= end <= 1 for end in (made.start, made.stop)):
        raise ValueError(f"rows {rows!r} are none")


def _list(values: Any, most: int) -> list[Any]:
    if not isinstance(values, list) or len(values) > most:
        raise ValueError(f"no list of at most {most} entries")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _matching(value: Any, pattern: re.Pattern[str], longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or not pattern.fullmatch(value):
        raise ValueError(f"{str(value)[:40]!r} is none")
    return value


def _name(value: Any) -> str:
    return _matching(value, _NAME, _LONGEST_NAME)


def _text(value: Any) -> str:
    # What turns the direction of writing, or is not seen, is not printable either.
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is none")
    return value
