"""A block that fails says where and why, and its test run goes on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from doc_blocks import ROOT, Block, blocks_of, run_bash, run_python
from pytest_examples import EvalExample, find_examples


def page_with(folder: Path, text: str, language: str = "python") -> Path:
    """Write a page that holds one block, from line 4 on."""
    page = folder / "page.md"
    page.write_text(f"# A page\n\n```{language}\n{text}\n```\n", encoding="utf-8")
    return page


FAILURES = [
    pytest.param("x = 1\n1 / 0", ["page.md:5: 1 / 0", "ZeroDivisionError: division by zero"], id="error"),
    pytest.param(
        "import warnings\n\nwarnings.warn('never so')", ["page.md:6:", "UserWarning: never so"], id="warning"
    ),
    pytest.param("print(1 + 1)\n#> 3", ["-#> 3", "+#> 2"], id="other-output"),
    pytest.param("assert 1 + 1 == 3", ["page.md:4: assert 1 + 1 == 3", "AssertionError"], id="assertion"),
    pytest.param("x = (", ["SyntaxError"], id="syntax"),
    pytest.param(
        "try:\n    int('x')\nexcept ValueError as exc:\n    raise RuntimeError('it is not known') from exc",
        ["page.md:7:", "RuntimeError: it is not known", "Beneath it", "invalid literal for int()"],
        id="cause",
    ),
]


@pytest.mark.parametrize(("code", "words"), FAILURES)
def test_failure_is_text(code: str, words: list[str], tmp_path: Path, eval_example: EvalExample) -> None:
    """The report names the page, the line and its text, and what was raised."""
    (example,) = find_examples(page_with(tmp_path, code))
    with pytest.raises(pytest.fail.Exception) as failure:
        run_python(example, eval_example)
    assert not [word for word in words if word not in str(failure.value)], str(failure.value)


def test_run_goes_on(tmp_path: Path) -> None:
    """Pytest shows the report, and runs what comes next."""
    page_with(tmp_path, "x = 1\n1 / 0")
    (tmp_path / "test_page.py").write_text(
        textwrap.dedent("""
            from pathlib import Path
            import pytest
            from doc_blocks import run_python
            from pytest_examples import find_examples

            @pytest.mark.parametrize("example", list(find_examples(Path(__file__).with_name("page.md"))), ids=str)
            def test_block(example, eval_example):
                run_python(example, eval_example)

            def test_next():
                assert True
        """),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml",
         "-o", f"pythonpath={ROOT / 'tests'}", tmp_path / "test_page.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    assert "INTERNALERROR" not in done.stdout + done.stderr


def test_failing_command(tmp_path: Path) -> None:
    """A command that fails is reported with its block, its status and what it wrote to stderr."""
    (block,) = blocks_of(page_with(tmp_path, "echo no such thing >&2; exit 3", "bash"))
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:4 ended with status 3(?s:.*)no such thing"):
        run_bash(block, tmp_path, {})


def test_blocks_of_a_page(tmp_path: Path) -> None:
    """Blocks are found whatever their fence: indented, long, in another language, or written by cog."""
    page = tmp_path / "page.md"
    page.write_text(
        "```py\nx\n```\n- item\n\n  ````bash\n  ```\n  ````\n<!-- [[[cog\ncog.out('```')\n]]] -->\n```text\nhelp\n```\n"
        "<!-- [[[end]]] -->\n~~~\n```\n~~~\n",
        encoding="utf-8",
    )
    assert blocks_of(page) == [
        Block(page, "py", 2, "x\n", in_cog=False),
        Block(page, "bash", 7, "  ```\n", in_cog=False),
        Block(page, "text", 13, "help\n", in_cog=True),
        Block(page, "", 17, "```\n", in_cog=False),
    ]
