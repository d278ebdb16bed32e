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


def test_names_are_broken_between_their_parts() -> None:
    """A name of a file, a class or a tensor is never broken in the middle of a word, as long as its words have room."""
    rows = [
        ("range", "model.layers.12.self_attn.q_proj.weight"),
        ("rescales", "transformers.models.gemma3.Gemma3ForCausalLM"),
    ]
    columns = (Column("what", wraps=True), Column("name", wraps=True), Column("age", number=True))
    for width in (40, 46, 60):
        text = page([table(columns, ((*row, "2 hours") for row in rows))], width=width)
        assert max(map(len, text.splitlines())) <= width
        shown = text.replace("2 hours", "").split()
        assert "rescales" in shown
        for name in (row[1] for row in rows):
            parts = [part for part in shown if part in name]
            assert "".join(parts) == name
            assert all(part.endswith((".", "_")) or name.endswith(part) for part in parts)


def test_too_narrow_for_columns() -> None:
    """Where columns have no room each row is a line of its own, with its titles, and nothing is left out."""
    columns = (Column("weights", number=True), Column("overflow", number=True), Column("name", wraps=True))
    text = page([table(columns, [("147,456", "12", "model.norm")])], width=20)
    assert " ".join(text.split()) == "weights 147,456; overflow 12; name model.norm"
    assert "…" not in text


def test_room_is_shared() -> None:
    """A column that lacks little gets it; the rest goes to the one that has most to say."""
    long = "a reason that goes on for longer than there is room on a line"
    first = page([table((Column("a", wraps=True), Column("b", wraps=True)), [("short one", long)])], width=40)
    assert "short one" in first
