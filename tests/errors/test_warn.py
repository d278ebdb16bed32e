"""`warn` names the user's line: under every library between, by the filters of that line; and nobody else warns."""

from __future__ import annotations

import ast
import linecache
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import safe_dtype
from safe_dtype import SafeDtypeWarning
from safe_dtype.errors.warn import warn

PACKAGE = Path(safe_dtype.__file__).parent
MODULES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "integrations").rglob("*.py")]


def called_from(name: str, spec: str = "") -> Callable[..., Any]:
    """Return a function of a module called `name` that calls its first argument with the others."""
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(name=spec) if spec else None  # type: ignore[assignment]
    exec(compile("def call(then, *args):\n    return then(*args)", f"<{name}>", "exec"), module.__dict__)
    return module.call  # type: ignore[no-any-return]


def caught_from(call: Callable[[], Any], action: Any = "always") -> list[warnings.WarningMessage]:
    """Return the warnings that `call` raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        call()
    return caught


def line_of(message: warnings.WarningMessage) -> str:
    """Return the line that a warning names."""
    return linecache.getline(message.filename, message.lineno).strip()


def ours_alone(text: str) -> None:
    """Warn from this file."""
    warn(text)  # the user's own


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("safe_dtype.guarding.step",), id="ours"),
        pytest.param(("safe_dtype.integrations.optimum.exporting", "optimum.exporters"), id="integrations"),
        pytest.param(("transformers.pipelines.base", "transformers_modules.remote"), id="transformers"),
        pytest.param(("torch.nn.modules.module", "accelerate.hooks", "peft.peft_model"), id="hooks"),
        pytest.param(("sentence_transformers.models", "contextlib", "functools"), id="machinery"),
    ],
)
def test_libraries_are_passed_over(names: tuple[str, ...]) -> None:
    """No frame of ours, of a library or of Python's machinery is named, however many lie between."""
    first, *others = [called_from(name) for name in names]

    def user() -> None:
        first(*others, warn, "text")  # the user's line

    (message,) = caught_from(user)
    assert message.category is SafeDtypeWarning
    assert message.filename == __file__
    assert line_of(message) == 'first(*others, warn, "text")  # the user\'s line'


@pytest.mark.parametrize("name", ["transformers_of_mine", "torchvision", "mytorch", "safe_dtypes"])
def test_names_are_compared_whole(name: str) -> None:
    """A module whose name only begins like a library's is the user's."""
    (message,) = caught_from(lambda: called_from(name)(warn, "text"))
    assert message.filename == f"<{name}>"


@pytest.mark.parametrize(
    ("spec", "filename"),
    [("safe_dtype.run", __file__), ("torch.distributed.run", __file__), ("own", "<__main__>"), ("", "<__main__>")],
)
def test_main(spec: str, filename: str) -> None:
    """`__main__` is the user's script or module, unless Python was started with a module of ours or of a library."""
    (message,) = caught_from(lambda: called_from("__main__", spec)(warn, "text"))
    assert message.filename == filename


def test_nobody_but_libraries() -> None:
    """In a thread that runs nothing of the user's the outermost frame is named: that is where the thread begins."""

    def run() -> None:
        thread = threading.Thread(target=called_from("safe_dtype.guarding"), args=(warn, "text"))
        thread.start()
        thread.join()

    (message,) = caught_from(run)
    assert message.filename == threading.__file__
    assert line_of(message) == "self._bootstrap_inner()"


def test_user_in_a_thread() -> None:
    """A function of the user's in a thread is named."""

    def run() -> None:
        thread = threading.Thread(target=ours_alone, args=("text",))
        thread.start()
        thread.join()

    (message,) = caught_from(run)
    assert line_of(message) == "warn(text)  # the user's own"


def test_once_a_place() -> None:
    """By default the same text is shown once for each line, as with `warnings.warn`."""
    call = called_from("safe_dtype.loading")

    def user() -> None:
        for _ in range(3):
            call(warn, "the same")
        call(warn, "the same")
        call(warn, "another")

    caught = caught_from(user, "default")
    assert [str(one.message) for one in caught] == ["the same", "the same", "another"]
    assert caught[1].lineno - caught[0].lineno == 1


def test_filters_by_module() -> None:
    """A filter for the user's module matches, one for ours does not."""
    call = called_from("safe_dtype.loading")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module="safe_dtype")
        call(warn, "shown")
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        call(warn, "hidden")
    assert [str(one.message) for one in caught] == ["shown"]


def test_as_an_error() -> None:
    """A filter that makes errors of warnings has it raised, through every frame between."""
    with pytest.raises(SafeDtypeWarning, match=r"^text$"):  # such is the filter of this project's tests
        called_from("safe_dtype.loading")(warn, "text")


def test_nobody_else_warns() -> None:
    """No other module calls `warnings.warn` or `warnings.warn_explicit`, nor imports anything from there."""
    warning = {
        path
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("warn", "warn_explicit"))
        or (isinstance(node, ast.ImportFrom) and node.module == "warnings")
    }
    assert warning == {PACKAGE / "errors/warn.py"}
