"""An optimization as a file, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from optimizing.recorded import RECORD, WRONG

from safe_dtype.errors import NotOptimizedError
from safe_dtype.optimizing.nouns.record import SCHEMA, Distance, Stage
from safe_dtype.optimizing.nouns.record_file import FILE, read_record, write_record


def test_file_of_an_earlier_version(tmp_path: Path) -> None:
    """A record without a limit of drift was written before there was one in it: it reads as one that has none."""
    path = write_record(replace(RECORD, max_drift=0.125), tmp_path)
    assert read_record(tmp_path).max_drift == 0.125
    values = json.loads(path.read_text())
    del values["max_drift"]
    path.write_text(json.dumps(values))
    assert read_record(tmp_path).max_drift is None


def test_whole_record(tmp_path: Path) -> None:
    """A record is read as it was written, and its schema stands first in the file."""
    path = write_record(RECORD, tmp_path)
    assert read_record(tmp_path) == RECORD
    assert next(iter(json.loads(path.read_text()).items())) == ("schema", SCHEMA)


def test_figures_that_are_not_finite(tmp_path: Path) -> None:
    """An infinite distance is null in the file, and infinite again when it is read."""
    far = Distance(float("inf"), float("inf"), -1.0, nonfinite=3)
    record = replace(RECORD, attempts=(replace(WRONG, stages=(Stage("traced", far, "other shapes"),)),))
    (attempt,) = json.loads(write_record(record, tmp_path).read_text())["attempts"]
    assert attempt["stages"][0]["distance"]["relative"] is None
    assert read_record(tmp_path).attempts[0].stages[0].distance == far


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no optimization.json in it"),
        ("{", "is not JSON"),
        ("[]", "is not of the schema"),
        ('{"schema": "safe_dtype.optimize/2"}', "is not of the schema"),
        (f'{{"schema": "{SCHEMA}"}}', "is damaged: KeyError"),
    ],
)
def test_unreadable(content: str | None, problem: str, tmp_path: Path) -> None:
    """A file that is missing, damaged or of another version is an error that says which."""
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(NotOptimizedError, match=problem):
        read_record(tmp_path)
