"""What the README and the documents say, happens; and everything that is public is in them."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import click
import pytest
import transformers
from accelerate.state import AcceleratorState, GradientState
from cures import CURES
from doc_blocks import PAGES, README, ROOT, Block, blocks_of, commands_of, run_bash, run_commands, run_python
from publishing.client import connect, environment
from publishing.loopback import LoopbackHub
from pytest_examples import CodeExample, EvalExample, find_examples

import safe_dtype
from safe_dtype import errors, testing
from safe_dtype.cli import cli
from safe_dtype.planning import policy

DOCS = PAGES[1:]
RUN = (*PAGES, ROOT / "examples" / "tiny-qwen3" / "README.md")
INSTALLS = 2  # the first blocks of the README install: `.ci/run` runs them, in new virtual environments
# Pages whose blocks optimize or publish a model, which takes half a minute each; so do launches on any page.
SLOW = {"optimize.md", "publish.md", "sapiens.md"}

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
BASH = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def marks_of(page: Path, text: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a block: the quick ones run by default."""
    # The client sends bytes in a way that its own HTTP library is about to drop.
    marks = [pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")]
    is_slow = page.name in SLOW or re.search(r"safe-dtype launch|accelerate launch|safe_dtype\.run", text)
    return [*marks, pytest.mark.slow] if is_slow and "--dry-run" not in text else marks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """For each page a folder in which its blocks run, one after another, with the examples of the project in it."""
    made = {}
    for page in RUN:
        made[page] = tmp_path_factory.mktemp(page.stem)
        (made[page] / "examples").symlink_to(ROOT / "examples")
    return made


def forget_accelerators() -> None:
    """Have the next block make the first Accelerator of a process: all of one process share a precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackHub]:
    """A Hub of this machine that holds `org/tiny-qwen3`, and what the blocks publish."""
    with LoopbackHub() as hub:
        model = (ROOT / "examples" / "tiny-qwen3").iterdir()
        hub.push("org/tiny-qwen3", {file.name: file.read_bytes() for file in model if file.is_file()})
        yield hub


@pytest.fixture
def hub(loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Point the client of this process at that Hub; what is returned points another process at it."""
    connect(monkeypatch, loopback, tmp_path / "client")
    return environment(loopback, tmp_path / "home")


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(
            example,
            marks=marks_of(example.path, example.source),
            id=f"{example.path.relative_to(ROOT)}:{example.start_line}",
        )
        for page in RUN
        for example in find_examples(page)
        if example.prefix == "python"
    ],
)
def test_python_runs(
    example: CodeExample,
    eval_example: EvalExample,
    folders: dict[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Every Python block runs, and prints what it says it prints."""
    if example.path.name == "publish.md":
        request.getfixturevalue("hub")
    monkeypatch.chdir(folders[example.path])
    request.addfinalizer(forget_accelerators)
    run_python(example, eval_example)


@pytest.mark.slow  # `.ci/run` runs them all
@pytest.mark.parametrize(
    "block", [pytest.param(block, marks=marks_of(block.page, block.text), id=str(block)) for block in BASH[INSTALLS:]]
)
def test_commands_run(
    block: Block, folders: dict[Path, Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shell block after the two that install succeeds; those of the README in a shell, as a newcomer has one."""
    online = request.getfixturevalue("hub") if block.page.name == "publish.md" else {}
    commands = commands_of(block)
    if commands is None or online or block.page == README:
        run_bash(block, folders[block.page], online)
    else:
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it; put it back afterwards
        monkeypatch.chdir(folders[block.page])
        run_commands(block, commands)


def test_two_commands_come_first() -> None:
    """The first two shell blocks install with the pins; one generates, one runs the tests."""
    first, second = (block.text for block in blocks_of(README)[:INSTALLS])
    assert "-c constraints.txt" in first
    assert "safe-dtype generate examples/tiny-qwen3" in first
    assert "-c constraints.txt" in second
    assert "pytest" in second


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_escapes(page: Path) -> None:
    """A block is run as Python or as bash, or cog writes it; no block is fenced otherwise."""
    escaped = [
        str(block) for block in blocks_of(page) if block.language not in ("python", "bash") and not block.in_cog
    ]
    assert not escaped
    assert not re.search("<(pre|code)", page.read_text(encoding="utf-8"))
    assert [example.source for example in find_examples(page) if example.prefix == "python"] == [
        block.text for block in blocks_of(page) if block.language == "python"
    ]


def test_written_by_cog() -> None:
    """What cog writes into the documents is fresh; `python -m cogapp -r docs/*.md` writes it anew."""
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "--diff", *DOCS],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_is_short() -> None:
    """The README has at most 10,000 bytes."""
    assert len(README.read_bytes()) <= 10_000


def figures_of(name: str) -> Any:
    """Return the figures of one file of benchmarks/results."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["figures"]


def test_readme_figures() -> None:
    """The first table of the README says what benchmarks/results hold."""
    text = README.read_text(encoding="utf-8")
    rows = {(row["saved"], row["cpu"], row["loader"]): row for row in figures_of("generation")["rows"]}
    plain, ours = (rows["bfloat16", "avx2", loader]["prefill_seconds"] for loader in ("auto", "safe_dtype"))
    assert f"| {plain:.1f} s | **{ours:.1f} s: {plain / ours:.0f} times as fast**" in text
    gemma = next(row for row in figures_of("rescue")["families"] if row["family"] == "gemma3")
    ways = {way["way"]: way for way in gemma["ways"]}
    assert not ways["float16"]["finite"]
    nearer = ways["bfloat16"]["kl_median"] / ways["float16 rescaled"]["kl_median"]
    assert f"**right**: {nearer:.0f} times nearer to float32 than in bfloat16 |" in text
    step = next(row for row in figures_of("guard_recovery") if row["step"] == 32)
    assert "at token 33 of 64 |" in text
    assert f"begun anew: {step['restarted_s']:.1f} s | **{step['recovered_s']:.1f} s**" in text


LINKING = (*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").rglob("*.md")))


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    """Every relative link and picture is a file of the project, and its anchor a heading of that file."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_are_there(page: Path) -> None:
    """Every script, test and folder that a page names is there."""
    named = re.findall(r"[` ]((?:benchmarks|examples|tests)/[\w./-]*\w)[` ]", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@dataclass(frozen=True)
class Command:
    """One command of the command line, by the words that call it."""

    words: tuple[str, ...]
    command: click.Command

    def __str__(self) -> str:
        return " ".join(self.words)


def commands_below(command: click.Command, *words: str) -> Iterator[Command]:
    """Yield `command` and every command below it."""
    yield Command(words, command)
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands_below(below, *words, name)


COMMANDS = list(commands_below(cli, "safe-dtype"))


@pytest.mark.parametrize("one", COMMANDS, ids=str)
def test_commands_are_documented(one: Command) -> None:
    """The reference shows the help of every command, with every option of it."""
    shown = {block.text.splitlines()[0]: block.text for block in blocks_of(ROOT / "docs" / "command.md")}
    text = shown[f"$ {one} --help"]
    assert f"Usage: {one} " in text
    for parameter in one.command.params:
        is_shown = isinstance(parameter, click.Option) and not parameter.hidden
        for name in parameter.opts if is_shown else []:
            assert re.search(rf"{re.escape(name)}\b", text), name


def unknown_words(text: str) -> list[str]:
    """Return the first verb or option of one `safe-dtype ...` that the command does not have, if any."""
    command, known = cli, {"-h", "--help", *(name for option in cli.params for name in option.opts)}
    for word in text.split()[1:]:
        if command.name in ("run", "launch") and word not in known:
            return []  # from here on it is the program's, or accelerate's
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            known |= {name for option in command.params for name in option.opts}
        elif (isinstance(command, click.Group) or word.startswith("-")) and word not in known:
            return [word]
    return []


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_commands_are_there(page: Path) -> None:
    """Every `safe-dtype ...` in the text of a page names a verb and options that the command has."""
    named = re.findall(r"`(safe-dtype [^`]+)`", page.read_text(encoding="utf-8"))
    assert {text: wrong for text in named if (wrong := unknown_words(text))} == {}


def words_of_a_policy() -> set[str]:
    """Return every word that a policy can have, with every value of those that have a few."""
    with pytest.raises(errors.PolicyError) as unknown:
        policy.Policy.parse("nonsense")
    words = set(re.findall(r"[a-z_]+\d*=?", str(unknown.value).partition("none of")[2].partition(". ")[0]))
    assert words >= {"auto", "strict", "islands", "prompt="}
    values = {"prefer=": get_args(policy.Prefer), "variants=": get_args(policy.Variants)}
    return {f"{word}{value}" for word in words for value in values.get(word, ("",))}


@pytest.mark.parametrize("word", sorted(words_of_a_policy()))
def test_policy_words_are_documented(word: str) -> None:
    """The table of policies has every word, and every value of `prefer` and `variants`."""
    table = [line for line in (ROOT / "docs" / "plan.md").read_text().splitlines() if line.startswith("| `")]
    assert any(f"`{word}" in line.split("|")[1] for line in table)


def functions_of(module: object) -> list[str]:
    """Return the public functions and classes that a module defines."""
    return [name for name, value in vars(module).items() if is_defined_in(value, module) and not name.startswith("_")]


def is_defined_in(value: object, module: object) -> bool:
    """Whether `value` is a function or a class of `module`, not one that it imports."""
    return getattr(value, "__module__", "") == getattr(module, "__name__", "-") and not inspect.ismodule(value)


@pytest.mark.parametrize("name", sorted({*safe_dtype.__all__, *functions_of(testing)}))
def test_names_are_documented(name: str) -> None:
    """Every public name is in the list of them."""
    assert f"`{name}`" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_errors_have_cures() -> None:
    """Every error and warning is in the table once, with what has happened and what to do; nothing else is."""
    table = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", table, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(errors.__all__) == sorted(CURES)
    assert all(what.strip() and cure.strip() for _, what, cure in rows)


REFERENCE = ("safe_dtype", "safe_dtype.ranks", "safe_dtype.testing", *(f"safe_dtype.integrations.{path.name}"
             for path in sorted((ROOT / "integrations").iterdir()) if (path / "__init__.py").is_file()))  # fmt: skip


@pytest.mark.parametrize("module", REFERENCE)
def test_reference_has_every_name(module: str) -> None:
    """The reference of Python has each public name of a module below its heading, functions and classes with their docs."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## `{module}`\n")[2].partition("\n## ")[0]
    shown = {part.partition("`")[0]: part for part in section.split("\n### `")[1:]}
    public = import_module(module)
    assert set(shown) == set(public.__all__) - {"__version__"}
    for name, text in shown.items():
        value = getattr(public, name)
        if callable(value) and getattr(errors, name, None) is not value:
            first_words = " ".join((inspect.getdoc(value) or "").split()[:6])
            assert first_words, name
            assert first_words in " ".join(text.split()), name


PUBLIC_MODULES = {"safe_dtype", *(f"safe_dtype.{name}" for name in ("errors", "testing", "ranks", "integrations"))}


def is_public(module: str, name: str) -> bool:
    """Whether users may import `name` from `module`."""
    if module == "safe_dtype":
        is_auto = name.startswith("SafeAutoModelFor") and hasattr(transformers, name.removeprefix("Safe"))
        return name in safe_dtype.__all__ or is_auto or f"{module}.{name}" in PUBLIC_MODULES
    return module in PUBLIC_MODULES or module.startswith("safe_dtype.integrations.")


SOURCES = {str(block): block.text for block in PYTHON} | {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in sorted((ROOT / "examples").glob("*.py"))
}


@pytest.mark.parametrize("source", SOURCES)
def test_code_is_public(source: str) -> None:
    """Python blocks and examples import public names alone, and ask the package for public names alone."""
    used: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(SOURCES[source])):
        if isinstance(node, ast.ImportFrom):
            used |= {(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {(alias.name, "") for alias in node.names if alias.name != "safe_dtype"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "safe_dtype":
            used.add(("safe_dtype", node.attr))
    ours = {(module, name) for module, name in used if module.partition(".")[0] == "safe_dtype"}
    assert {one for one in ours if not is_public(*one)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_public(page: Path) -> None:
    """Where a page speaks of `safe_dtype.something`, that is public, or a file, a module that is run, or a group of entry points."""
    spoken = set(re.findall(r"\bsafe_dtype\.([A-Za-z_]+)", page.read_text(encoding="utf-8")))
    assert {name for name in spoken - {"json", "run", "cli", "forms"} if not is_public("safe_dtype", name)} == set()
