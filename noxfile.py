"""Everything that is run before a release, each in an environment of its own: `nox --list`.

A tool lane tests one tool that people use with this package, against the real library: `nox -s "tool(trl)"`. A new one is
a row of `TOOLS` and files `tests/integrations/test_<name>*.py` whose tests are marked `needs("<name>")`.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["build", "tests"]  # `nox` alone

ROOT = Path(__file__).parent
PINNED = ("-c", "constraints.txt")
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")["project"]


@dataclass(frozen=True)
class Tool:
    """One tool lane: what pip installs beside `.[test]`, and whether with the versions of constraints.txt."""

    packages: tuple[str, ...] = ()
    pinned: bool = True
    settings: dict[str, str] = field(default_factory=dict)  # of its environment, beside the user's
    needs: tuple[str, ...] = ()  # what has to be there, where that is not what has its name
    other_pins: tuple[str, ...] = ()  # packages of constraints.txt that it wants in another version


# By the name that `needs` and `--must-have` have for it: that of its module, or a name of tests/conftest.py.
TOOLS: dict[str, Tool] = {
    "bitsandbytes": Tool(("bitsandbytes",)),
    "compressed_tensors": Tool(("compressed-tensors",)),
    "torchao": Tool(("torchao",)),
    "diffusers": Tool(("diffusers",)),
    "gptqmodel": Tool(
        ("gptqmodel==7.4.0", "optimum", "torchvision"), other_pins=("numpy",)
    ),  # 7.7 asks for torch 2.14.1
    "lm_eval": Tool(("lm-eval",)),
    "openvino": Tool(settings={"SAFE_DTYPE_OPTIMUM_INTEL": ""}),  # its tests make an environment for optimum-intel
    "pipelines": Tool(("av", "pandas"), needs=("av", "pandas")),
    "sentence_transformers": Tool(("sentence-transformers",)),
    "serve": Tool(("transformers[serving]",)),
    "trl": Tool(("trl",)),
    "vllm": Tool(("vllm",), pinned=False),  # which has a torch of its own
    "xllamacpp": Tool(("xllamacpp",)),
}


@nox.session(python="3.11")
def tests(session: nox.Session) -> None:
    """Run the default suite with the pinned versions."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(python="3.10")
def lowest(session: nox.Session) -> None:
    """Run the default suite with the lowest version of each dependency that pyproject.toml allows."""
    session.install("-e", ".[test]", *(requirement.replace(">=", "==") for requirement in PROJECT["dependencies"]))
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"])
def newest(session: nox.Session) -> None:
    """Run the default suite with the newest releases of all dependencies that this Python can have."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
@nox.parametrize("name", [nox.param(name, id=name) for name in TOOLS])
def tool(session: nox.Session, name: str) -> None:
    """Test one tool against the real library."""
    row = TOOLS[name]
    session.install(*_pins(session, row), "-e", ".[test]", *row.packages)
    files = sorted(str(file) for file in Path("tests/integrations").glob(f"test_{name}*.py"))
    settings = row.settings | {setting: os.environ[setting] for setting in row.settings if setting in os.environ}
    session.run(
        "pytest", "-m", "", *files, "--must-have", ",".join(row.needs or (name,)), *session.posargs, env=settings
    )


def _pins(session: nox.Session, row: Tool) -> tuple[str, ...]:
    if not row.pinned or not row.other_pins:
        return PINNED if row.pinned else ()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    file = Path(session.create_tmp()) / "constraints.txt"
    file.write_text("\n".join(pin for pin in pins if pin.partition("==")[0] not in row.other_pins), encoding="utf-8")
    return ("-c", str(file))


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel into the folder given after `--`, check both, and import the wheel without torch."""
    folder = Path(session.posargs[0]) if session.posargs else ROOT / "dist"
    session.install(*PINNED, "build", "twine")
    session.run("python", "-m", "build", "--outdir", str(folder), ".")  # the wheel is built from the sdist
    version = re.escape(PROJECT["version"])
    built = [path for path in folder.iterdir() if re.match(rf"safe_dtype-{version}(-py3|\.tar)", path.name)]
    session.run("twine", "check", "--strict", *map(str, built))
    (wheel,) = (path for path in built if path.suffix == ".whl")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        session.run("python", "-c", WITHOUT_TORCH)


WITHOUT_TORCH = """
import importlib.util
from importlib.resources import files
import safe_dtype
assert importlib.util.find_spec("torch") is None
assert "site-packages" in safe_dtype.__file__, safe_dtype.__file__
assert (files(safe_dtype) / "py.typed").is_file()
assert "SafeAutoModel" in safe_dtype.__all__
"""
