"""The YAML at the top of a card: what others wrote stays as they wrote it."""

from __future__ import annotations

import pytest

from safe_dtype.errors import NotPublishableError
from safe_dtype.publishing.staging.front_matter import dumped, merged, parted, read_front_matter


@pytest.mark.parametrize(
    ("card", "values"),
    [
        pytest.param("---\nlicense: mit\n---\n# M\n", {"license": "mit"}, id="a-table"),
        pytest.param("# M\n---\nlicense: mit\n", {}, id="not-at-the-top"),
        pytest.param("---\n- a\n- b\n---\n", {}, id="a-list"),
        pytest.param("---\na: [1\n---\n", {}, id="no-yaml"),
        pytest.param("", {}, id="empty"),
    ],
)
def test_reading(card: str, values: dict[str, object]) -> None:
    """A table at the top is read; anything else counts as none."""
    assert read_front_matter(card) == values


@pytest.mark.parametrize(
    ("card", "top", "body"),
    [
        pytest.param("---\na: 1\n---\n# M\n", "a: 1\n", "# M\n", id="both"),
        pytest.param("---\r\na: 1\r\n---\r\n# M\r\n", "a: 1\n", "# M\n", id="windows"),
        pytest.param("# M\n", "", "\n# M\n", id="no-yaml"),
        pytest.param("---\n---\n# M\n", "", "# M\n", id="empty-yaml"),
        pytest.param("", "", "", id="nothing"),
    ],
)
def test_parting(card: str, top: str, body: str) -> None:
    """The lines of the YAML, and what comes after it."""
    assert parted(card) == (top, body)


@pytest.mark.parametrize("card", ["---\na: 1\n# M\n", "---\na: [1\n---\n", "---\n- a\n---\n"])
def test_what_cannot_be_parted(card: str) -> None:
    """YAML without an end, or that is no table, is not guessed at."""
    with pytest.raises(NotPublishableError, match="repair it"):
        parted(card)


@pytest.mark.parametrize(
    ("top", "ours", "lines"),
    [
        pytest.param("", {"a": 1}, ["a: 1"], id="new"),
        pytest.param("a: 1  # theirs\n", {"a": 1}, ["a: 1  # theirs"], id="the-same"),
        pytest.param("a: 1\nb: 2\n", {"a": 3}, ["a: 3", "b: 2"], id="changed-in-place"),
        pytest.param("a:\n  - x\n# of b\nb: 2\n", {"a": 3}, ["a: 3", "# of b", "b: 2"], id="a-block"),
        pytest.param("tags: [x]\n", {"tags": ["x", "y"]}, ["tags:", "- x", "- y"], id="a-list-grows"),
        pytest.param("tags: x\n", {"tags": ["y"]}, ["tags:", "- x", "- y"], id="a-text-becomes-a-list"),
        pytest.param("tags: [x, y]\n", {"tags": ["y"]}, ["tags: [x, y]"], id="a-list-has-it"),
    ],
)
def test_merging(top: str, ours: dict[str, object], lines: list[str]) -> None:
    """Our keys come into their places; of lists nothing is taken away; a second time changes nothing."""
    once = merged(top, ours)
    assert once.splitlines() == lines
    assert merged(once, ours) == once


def test_order() -> None:
    """Values are written in the order that they are in."""
    assert dumped({"b": 1, "a": ["ü"]}) == "b: 1\na:\n- ü\n"
