"""Tables for a terminal, as text."""

from __future__ import annotations

from safe_dtype.rendering.tables import Column, page, table

COLUMNS = (Column("name"), Column("count", number=True), Column("reason", wraps=True))


def test_columns() -> None:
    """Numbers are aligned to the right, and only what wraps is broken into lines."""
    rows = [("a", "1", "short"), ("b", "1,000", "a reason that goes on for longer than there is room")]
    lines = page([table(COLUMNS, rows)], width=40).splitlines()
    titles, first, second, *rest = (line for line in lines if line.strip(" ─"))
    assert titles.split() == ["name", "count", "reason"]
    assert first.index("1 ") == second.index("0 ")
    assert rest
    assert {line[: second.index("a reason")].strip() for line in rest} == {""}
    assert max(map(len, lines)) <= 40


def test_a_page() -> None:
    """Lines and tables come in order; brackets and numbers stay as they are, and no line ends in spaces."""
    text = page(["[bold] 3.5", table((Column("x"),), [("y",)], tight=True), "end"], width=30)
    assert text.startswith("[bold] 3.5\n")
    assert text.endswith("\nend")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_nothing() -> None:
    """A page without parts is empty."""
    assert page([], width=80) == ""
