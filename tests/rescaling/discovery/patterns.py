"""A gauge as the powers of what it moves."""

from __future__ import annotations

import re

from safe_dtype.facts import Gauge, Part


def pattern(gauge: Gauge) -> dict[str, int]:
    """Return the power of every move, layers and experts taken together; moves of modules are marked."""
    marks = {Part.WEIGHT: "", Part.NUMBER: "", Part.INPUT: "> ", Part.OUTPUT: "< "}
    return {marks[move.part] + re.sub(r"\b\d+\b", "*", move.target): move.power for move in gauge.moves}
