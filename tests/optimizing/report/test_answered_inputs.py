"""Which inputs an optimized form answers, as the summary says it."""

from __future__ import annotations

from dataclasses import replace

from optimizing.recorded import EAGER, FAST, RECORD

from safe_dtype.optimizing.nouns.record import Batch
from safe_dtype.optimizing.report.report import summary_text


def test_sizes() -> None:
    """A file holds for the sizes that it was made for, and the summary names them; what is compiled takes any."""
    assert "answers" not in summary_text(RECORD)
    exported = replace(RECORD, attempts=(EAGER, replace(FAST, form="export")))
    ranges = "the batch from 1 to 32, dimension 1 of `input_ids` from 2 to 64"
    assert f"answers input_ids of 2 x 9, {ranges}; other sizes go to eager: --length, --batch" in summary_text(
        exported
    )
    shape = {"pixel_values": {"shape": [2, 3, 224, 224], "dtype": "float32"}}
    fixed = replace(exported, batches=(Batch("traced", "inputs/traced-0.safetensors", shape),), dynamic={})
    line = "answers pixel_values of 2 x 3 x 224 x 224; other sizes go to eager: --size, --batch"
    assert line in summary_text(fixed)
