"""What benchmarks/architectures.py found of every architecture is still so: none fails now that did not, in no dtype."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

WORKERS, LIMIT = 2, 120.0
ORDERS = (("bfloat16", "bfloat16"), ("float16", "float16"))  # the two that can differ from plain float32


@pytest.fixture(scope="module")
def sweep(project_root: Path) -> Iterator[Any]:
    """The script, with what it imports beside it."""
    sys.path.insert(0, str(project_root / "benchmarks"))
    import architectures

    yield architectures
    sys.path.remove(str(project_root / "benchmarks"))


@pytest.mark.slow
def test_no_architecture_fails_that_did_not(sweep: Any) -> None:
    """One class of each type of model, from files in each 16-bit dtype: made as before, and no worse than before."""
    from architecture_parts.subjects import every_subject
    from architecture_parts.trial import is_fault
    from architecture_parts.workers import rows_of

    before = {
        row.model_class: row for row in sweep.rows_in(sweep.TABLE.read_text(encoding="utf-8")) if not row.problem
    }
    types = {(row.model_type, row.model_class) for row in before.values()}
    subjects = {one.model_class: (one,) for one in every_subject() if (one.model_type, one.model_class) in types}
    assert subjects.keys() == before.keys()
    worse = [
        sweep.line_of(row)
        for row in rows_of([*subjects.values()], workers=WORKERS, limit=LIMIT, orders=ORDERS)
        if row.problem or (is_fault(row) and not is_fault(before[row.model_class]))
    ]
    assert not worse, "\n".join(worse)


def test_words_of_the_table(sweep: Any) -> None:
    """What a table says is read as it was written, what was not compared apart."""
    from architecture_parts.trial import Row

    rows = [
        Row("bert", "BertModel", "text", {"bfloat16": "same", "planned": "rescued (a)"}),
        Row("t5", "T5Model", problem="ValueError: no"),
    ]
    assert sweep.rows_in(sweep.table(rows, 3)) == rows


@pytest.mark.parametrize(
    ("plain", "ours", "word"),
    [
        pytest.param(1.0, 1.0, "same", id="equal"),
        pytest.param("RuntimeError", 1.01, "rescued", id="plain-raises"),
        pytest.param(float("nan"), 1.01, "rescued", id="plain-nan"),
        pytest.param(1.0, 1.5, "DIFFERS", id="other-numbers"),
        pytest.param(1.0, float("nan"), "NAN", id="nan"),
        pytest.param(1.0, "RuntimeError", "FAILS", id="raises"),
        pytest.param("RuntimeError", "RuntimeError", "NOT RESCUED", id="both-raise"),
    ],
)
def test_verdicts(sweep: Any, plain: float | str, ours: float | str, word: str) -> None:
    """A row says what happened, in capitals where something is wrong."""
    from architecture_parts.trial import Result, verdict

    def result(number: float | str) -> Any:
        return Result(error=number) if isinstance(number, str) else Result({"logits": torch.tensor([2.0, number])})

    text = verdict(result(plain), result(ours), result(1.0), is_plain=True, events=[])
    assert text.startswith(word)


def test_one_row(sweep: Any) -> None:
    """A class is made from its default config, saved, loaded in each dtype, and gives what plain transformers gives."""
    from architecture_parts.subjects import Subject
    from architecture_parts.trial import examine

    row = examine(Subject("bert", "AutoModel", BertModel.__name__), ORDERS)
    assert row.problem == ""
    assert set(row.outcomes.values()) == {"same"}
