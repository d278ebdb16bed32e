"""A JSON text is read, or refused with a ValueError."""

from __future__ import annotations

import pytest

from safe_dtype.store import parse_json
from safe_dtype.store.json_text import parse_unambiguous_json


def test_a_table() -> None:
    """What is JSON is read, text or bytes."""
    assert parse_json('{"a": [1, null]}') == parse_json(b'{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="cut"),
        pytest.param(b"\xff\xfe\x00", id="no-text"),
        pytest.param("[" * 100_000 + "]" * 100_000, id="deep-lists"),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, id="deep-tables"),
        pytest.param("1" * 10_000, id="many-digits"),
    ],
)
def test_no_json(text: str | bytes) -> None:
    """Anything else is one kind of error."""
    with pytest.raises(ValueError):  # noqa: PT011  (each has words of its own)
        parse_json(text)


def test_what_every_reader_reads_alike() -> None:
    """A JSON text of others is read where nobody could read it otherwise."""
    assert parse_unambiguous_json(b'{"a": {"b": 1}, "b": [2.5, "NaN"]}') == {"a": {"b": 1}, "b": [2.5, "NaN"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param('{"a": [{"b": 1, "c": 2, "b": 1}]}', "a key twice", id="a-key-twice"),
        pytest.param('{"a": NaN}', "NaN is no JSON", id="not-a-number"),
        pytest.param("[-Infinity]", "-Infinity is no JSON", id="without-end"),
        pytest.param("[" * 100_000, "nested too deep", id="deep"),
    ],
)
def test_what_readers_read_differently(text: str, words: str) -> None:
    """What one reader takes for one thing and another for another is refused."""
    with pytest.raises(ValueError, match=words):
        parse_unambiguous_json(text)
