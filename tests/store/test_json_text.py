"""A JSON text is read, or refused with a ValueError."""

from __future__ import annotations

import pytest

from safe_dtype.store import parse_json


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
