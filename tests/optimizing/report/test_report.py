"""The page and the picture say what the record says, and render as they were meant."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from optimizing.recorded import EAGER, FAILED, FAST, RECORD, WRONG

from safe_dtype.optimizing.nouns.record import Distance, Optimization, Stage, Status
from safe_dtype.optimizing.nouns.record_file import read_record, write_record
from safe_dtype.optimizing.report.plot import report_svg
from safe_dtype.optimizing.report.report import report_text, summary_text


class _Tables(HTMLParser):
    """Collects the cells of every table, and the rest of the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.text = ""
        self._where = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("td", "th", "h1", "h2"):
            self._where = tag
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "h1", "h2"):
            self._where = ""

    def handle_data(self, text: str) -> None:
        self.text += text
        if self._where in ("td", "th"):
            self.tables[-1][-1][-1] += text
        elif self._where:
            self.headings[-1] += text


def rendered(found: Optimization) -> _Tables:
    """Return the page as a renderer of Markdown with tables reads it."""
    return _Tables(MarkdownIt("commonmark").enable("table").render(report_text(found)))


def table(found: Optimization, first: str) -> list[dict[str, str]]:
    """Return the rows of the table whose first title is `first`, by title."""
    titles, *rows = next(one for one in rendered(found).tables if one[0][0] == first)
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_tables_render() -> None:
    """No bar, star or backtick of a foreign text breaks a table: all rows are as wide as the titles."""
    page = rendered(RECORD)
    assert len(page.tables) == 8
    for one in page.tables:
        assert len({len(row) for row in one}) == 1, one[0]
    assert page.headings == [
        "tiny<b>, optimized", "Dtypes", "Attempts", "Why the others are not used", "Graphs", "Reference", "Inputs",
        "Use it", "Environment",
    ]  # fmt: skip


def test_attempts() -> None:
    """Every attempt has a row: its number, the worst of its stages, and its times, also against eager float32."""
    rows = table(RECORD, "no.")
    assert [row["no."] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[1] == {
        "no.": "1", "form": "regional (2 regions, 87% of the parameters)", "dtype": "bfloat16",
        "remedies": "attn_implementation=sdpa", "outcome": "verified", "stages": "traced, held out",
        "form error": "0.01", "top-1": "<100%", "equal ids": "97.00%", "mIoU": "98.00%", "KL (nats)": "0.001",
        "build s": "12.3", "run ms": "5 ±5%", "x eager": "2.00x", "x eager float32": "4.00x", "size": "3.0 MiB",
    }  # fmt: skip
    assert rows[2]["form error"] == "0.5"
    assert rows[2]["x eager float32"] == "-"


def test_failures() -> None:
    """Every attempt that is not used has its reason, in one line, and its log."""
    text = rendered(RECORD).text
    assert "2, torchscript in float32: wrong. held out: it differs | by *0.5* of the largest. Log: attempts/02" in text
    assert "3, export in float32: failed. Data-dependent branching. Log: attempts/03/attempt.log." in text
    assert "4, onnx in float16: skipped. onnx not installed." in text


def test_breaks() -> None:
    """A line that breaks a graph is shown once with its place and code; a count is said to be no verdict."""
    (row,) = table(RECORD, "where it breaks")
    assert row == {
        "where it breaks": "models/m.py:12", "code": "if a | b or `c`:", "kind": "data_dependent", "times": "3",
        "reason": "Data-dependent | branching",
    }  # fmt: skip
    assert table(RECORD, "counted by torch._dynamo.explain")[0]["graphs"] == "17"
    assert "The counts decide nothing" in rendered(RECORD).text


def test_dtypes() -> None:
    """Each dtype is held against float32, apart from any form; one that did not answer has its reason."""
    rows = table(RECORD, "dtype")
    assert rows[1]["relative"] == "0.014"
    assert rows[1]["x float32"] == "2.00x"
    assert (rows[2]["relative"], rows[2]["verdict"]) == ("-", "ended by SIGSEGV")


def test_whose_limit() -> None:
    """The page says whether dtypes were judged by the user's limit or by what rounding explains, and how to repeat it."""
    assert "A dtype passes where rounding explains the difference" in rendered(RECORD).text
    assert "--max-drift" not in rendered(RECORD).text
    limited = rendered(replace(RECORD, max_drift=0.125)).text
    assert "You allow a drift of 0.125 from float32" in limited
    assert "where rounding explains" not in limited
    assert "--form export --max-drift 0.125 --batch 1..32" in limited


def test_how_to_go_on() -> None:
    """The page says how to load, to restore and to repeat, in commands that name what was asked for."""
    text = rendered(RECORD).text
    assert 'load_optimized("DIR")' in text
    assert "model(input_ids=input_ids)" in text
    assert "safe-dtype optimize --restore --out DIR" in text
    assert "--out DIR --form export --batch 1..32 --device cpu" in text
    assert "May vary: the batch from 1 to 32, dimension 1 of input_ids from 2 to 64." in text


def test_hashes_are_short() -> None:
    """Files are named with the first digits of their hash."""
    assert table(RECORD, "file")[0] == {"file": "model.safetensors", "SHA-256": "0123456789ab"}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param(RECORD, "Fell back (exit status 3)", id="fell-back"),
        pytest.param(replace(RECORD, status=Status.REACHED), "Reached (exit status 0)", id="reached"),
        pytest.param(
            replace(RECORD, status=Status.NO_DTYPE, chosen=None, why="no reference", attempts=(), dtypes=()),
            "Nothing passed: use the model as it was (exit status 4): no reference", id="nothing",
        ),
    ],
)  # fmt: skip
def test_headline(found: Optimization, says: str) -> None:
    """The page and the summary begin with what was reached, and why."""
    assert says in rendered(found).text
    assert says.replace("exit ", "") in summary_text(found)
    assert ("There is no form to load" in rendered(found).text) is (found.chosen is None)


def test_bare_record() -> None:
    """A run that ended before anything was tried has a page, too."""
    bare = Optimization("tiny", "", "cpu", "auto", "auto", "float32", why="no reference")
    assert rendered(bare).headings == ["tiny, optimized", "Use it"]
    assert "No attempt gave outputs." in report_svg(bare)


def test_from_the_file(tmp_path: Path) -> None:
    """The page and the picture of a record that was written and read again are the same."""
    write_record(RECORD, tmp_path)
    again = read_record(tmp_path)
    assert report_text(again) == report_text(RECORD)
    assert report_svg(again) == report_svg(RECORD)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_summary(count: int) -> None:
    """The summary has 5 to 15 lines, however many attempts there were, and the chosen one is marked."""
    lines = summary_text(replace(RECORD, attempts=(EAGER, FAST, *[FAILED, FAST, WRONG] * count))).splitlines()
    assert 5 <= len(lines) <= 15
    assert sum(line.startswith("  * ") for line in lines) == 1
    assert "  * regional in bfloat16 with attn_implementation=sdpa: 4.00x the speed of eager float32" in "\n".join(
        lines
    )


def test_starts_without_torch() -> None:
    """The page is written, and the picture's module imported, without torch."""
    code = (
        "import sys, safe_dtype.optimizing.report, safe_dtype.optimizing.report.plot; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_distance_of_infinity() -> None:
    """An infinite distance is a figure in the table."""
    far = replace(WRONG, stages=(Stage("traced", Distance(float("inf"), float("inf"), -1.0), "other shapes"),))
    assert table(replace(RECORD, attempts=(far,), chosen=None), "no.")[0]["form error"] == "inf"
