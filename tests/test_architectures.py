"""What benchmarks/architectures.py found of every architecture is still so: none fails now that did not, in no dtype."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertModel

WORKERS, LIMIT = 2, 300.0  # seconds for a class: the longest takes 70 of them alone
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
    """One class of each type, another one on the next day, from files in each 16-bit dtype: no worse than the table says."""
    from architecture_parts.table import line_of, rows_in
    from architecture_parts.trial import is_fault
    from architecture_parts.workers import rows_of

    before = {subject: row for subject, row in rows_in(sweep.RESULTS).items() if not row.problem}
    assert before
    worse = [
        line_of(row)
        for row in rows_of(chosen(list(before), datetime.date.today()), workers=WORKERS, limit=LIMIT, orders=ORDERS)
        if row.problem or (is_fault(row) and not is_fault(before[row.subject]))
    ]
    assert not worse, "\n".join(worse)


def chosen(subjects: list[Any], day: datetime.date) -> list[Any]:
    """Return one class of each type: all of them in turn, from day to day."""
    types: dict[str, list[Any]] = {}
    for subject in subjects:
        types.setdefault(subject.model_type, []).append(subject)
    return [classes[day.toordinal() % len(classes)] for classes in types.values()]


def test_every_class_has_its_day(sweep: Any) -> None:
    """Each day has a class of every type, and within as many days as a type has classes all of them occur."""
    from architecture_parts.subjects import Subject

    subjects = [Subject("t5", "", "T5Model"), *(Subject("bert", "", name) for name in ("A", "B", "C"))]
    days = [chosen(subjects, datetime.date(2026, 11, day)) for day in (28, 29, 30)]
    assert all([one.model_type for one in classes] == ["t5", "bert"] for classes in days)
    assert {one.model_class for classes in days for one in classes} == {"T5Model", "A", "B", "C"}


def test_rows_are_read_as_they_were_written(sweep: Any, tmp_path: Path) -> None:
    """A table is read as it was written, what was not compared as well; for people classes of like outcomes are one line."""
    from architecture_parts.subjects import Subject
    from architecture_parts.table import rows_in, write
    from architecture_parts.trial import Row

    outcomes = {"bfloat16": "same", "planned": "rescued (a)"}
    rows = [
        Row(Subject("bert", "AutoModel", "BertModel"), "input_ids", outcomes),
        Row(Subject("bert", "AutoModelForMaskedLM", "BertForMaskedLM"), "input_ids", outcomes),
        Row(Subject("t5", "AutoModel", "T5Model"), problem="ValueError: no"),
    ]
    write(rows, [row.subject for row in rows], tmp_path)
    assert rows_in(tmp_path) == {row.subject: row for row in rows}
    page = (tmp_path / "architectures.md").read_text(encoding="utf-8")
    assert "| bert | BertForMaskedLM, BertModel | input_ids | same | rescued (a) |" in page
    assert "3 classes of 2 types" in page
    assert "2 classes of 1 types" in page


@pytest.mark.parametrize(
    ("plain", "ours", "word"),
    [
        pytest.param(1.0, 1.0, "same", id="equal"),
        pytest.param(3.0, 3.0, "same, ", id="equal-and-far-from-float32"),
        pytest.param("RuntimeError", 1.01, "rescued", id="plain-raises"),
        pytest.param("RuntimeError", 3.0, "FAR", id="plain-raises-and-far-from-float32"),
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


@pytest.mark.parametrize(
    ("name", "ours", "word"),
    [
        pytest.param(
            "output.init_reference_points", float("inf"), "same, +Inf in output.init_reference_points", id="a-part"
        ),
        pytest.param("output.init_reference_points", float("nan"), "NAN", id="nan-in-a-part"),
        pytest.param("output.logits", float("inf"), "NAN", id="a-result"),
    ],
)
def test_verdict_on_infinity(sweep: Any, name: str, ours: float, word: str) -> None:
    """What plain transformers has as +Inf as well is no fault in what one part of a model hands to the next."""
    from architecture_parts.trial import Result, verdict

    infinite, finite = (Result({name: torch.tensor([2.0, number])}) for number in (ours, 1.0))
    assert verdict(infinite, infinite, finite, is_plain=True, events=[]).startswith(word)


def test_one_row(sweep: Any) -> None:
    """A class is made from its default config, saved, loaded in each dtype, and gives what plain transformers gives."""
    from architecture_parts.subjects import Subject
    from architecture_parts.trial import examine

    row = examine(Subject("bert", "AutoModel", BertModel.__name__), ORDERS)
    assert row.problem == ""
    assert row.inputs == "input_ids, token_type_ids"
    assert set(row.outcomes.values()) == {"same"}


def test_every_class_of_a_type(sweep: Any) -> None:
    """A type has a row for each of its classes, the one that stands for it first."""
    from architecture_parts.subjects import every_subject

    classes = [one.model_class for one in every_subject() if one.model_type == "bert"]
    assert classes[0] == "BertLMHeadModel"
    assert {BertModel.__name__, BertForMaskedLM.__name__} < set(classes)
    assert len(classes) == len(set(classes))
