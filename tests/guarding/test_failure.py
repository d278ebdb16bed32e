"""What a report shows of itself."""

from __future__ import annotations

from safe_dtype import BFLOAT16, FLOAT32, Event, FailureKind, Report

EVENT = Event(
    FailureKind.OP_UNSUPPORTED, BFLOAT16, FLOAT32, "model.layers.<1>", 3, "float32", "no kernel",
    milliseconds=41.0, grown_bytes=1024,
)  # fmt: skip


def test_notebook_lists_events() -> None:
    """In a notebook every event is a row; names that are HTML stay text."""
    page = Report("Qwen3ForCausalLM", FLOAT32, (FLOAT32,), (EVENT,))._repr_html_()
    assert "Qwen3ForCausalLM in float32: 1 event<" in page
    for cell in ("3", "op_unsupported", "model.layers.&lt;1&gt;", "bfloat16", "float32", "41 ms, +1,024 bytes"):
        assert f">{cell}</td>" in page


def test_notebook_without_events() -> None:
    """Where nothing has happened there is no table, and what was refused stands there."""
    page = Report("M", None, (), (), islands=("head",), refusals=("StrictModeError: <no>",))._repr_html_()
    assert "<table" not in page
    assert "M in None: 0 events<br>  in float32: head" in page
    assert "ended a call: StrictModeError: &lt;no&gt;" in page
