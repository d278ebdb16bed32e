"""A rescue in a file beside the weights: written and read again, or refused with what is wrong."""

from __future__ import annotations

import json

from safe_dtype.facts import Gauge, Move, Part, Rescale
from safe_dtype.rescaling.folding.rescale_file import Stored


def test_written_and_read() -> None:
    """What is stored is read again as it was."""
    gauge = Gauge("residual", (Move(Part.NUMBER, "model.norm.eps", -2),))
    for stored in (Stored(Rescale(((gauge, 3),), ("model.vision",)), ("a.b",), 0.02), Stored(None, (), None)):
        assert Stored.from_dict(json.loads(json.dumps(stored.to_dict()))) == stored
