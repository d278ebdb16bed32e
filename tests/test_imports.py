"""Imports go one way, and the command starts without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomllib

import safe_dtype

PACKAGE = Path(safe_dtype.__file__).parent
ROOT = Path(__file__).resolve().parent.parent

# From the ground up. A room imports only rooms that stand before it, for type checkers too; nothing points up.
LAYERS = (
    "errors",
    "processes",
    "store",
    "facts",
    "rendering",
    "verifying",
    "planning",
    "hub",
    "numerics",
    "checkpoints",
    "models",
    "devices",
    "rescaling",
    "guarding",
    "testing",
    "loading",
    "optimizing",
    "commands",
    "patching",
    "publishing",
    "integrations",
    "cli",
    "run",
    "__main__",
)
WITHOUT_TORCH = ("errors", "processes", "store", "facts", "rendering", "planning")
AT_THE_TOP = {"__init__.py", "__main__.py", "run.py", "testing.py", "py.typed"}


@dataclass(frozen=True)
class Module:
    """One module of the package, by its path below `safe_dtype`: integrations lie beside it in the tree."""

    path: Path
    parts: tuple[str, ...]

    @property
    def room(self) -> str:
        """The folder, or for a module at the top its name."""
        return self.parts[0].removesuffix(".py")

    def __str__(self) -> str:
        return "/".join(self.parts)


def modules_below(folder: Path, *prefix: str) -> list[Module]:
    """Return every module below `folder`, in order."""
    return [Module(one, (*prefix, *one.relative_to(folder).parts)) for one in sorted(folder.rglob("*.py"))]


MODULES = modules_below(PACKAGE) + modules_below(ROOT / "integrations", "integrations")
OUTSIDE = modules_below(ROOT / "benchmarks", "benchmarks") + modules_below(ROOT / "examples", "examples")


def imported(module: Module) -> set[str]:
    """Return the rooms of safe_dtype, and the outside packages, that `module` imports anywhere in its code.

    Imports that only a type checker sees count as well. A string that names a module of ours counts: it is imported by
    `import_module`, or started as a process.
    """
    tree = ast.parse(module.path.read_text(encoding="utf-8"))
    depth = len(module.parts)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {_room_named(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(_room_named(str(node.module)))
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAMES_A_MODULE.fullmatch(node.value):
            found.add(_room_named(node.value))
    return found


_NAMES_A_MODULE = re.compile(r"safe_dtype(\.[a-z_]+)+")


def _room_named(module: str) -> str:
    ours, _, rest = module.partition("safe_dtype.")
    return rest.partition(".")[0] if not ours and rest else module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_one_way(module: Module) -> None:
    """A module imports only rooms that stand before its own."""
    if module.room == "__init__":
        return  # the face: it shows names of any room
    below = LAYERS[: LAYERS.index(module.room)]
    ours = {name for name in imported(module) if name in LAYERS}
    assert ours - {module.room} <= set(below)


@pytest.mark.parametrize("module", OUTSIDE, ids=str)
def test_nothing_imports_from_outside(module: Module) -> None:
    """Benchmarks and examples stand above the package: they import it, and nothing of it imports them."""
    assert module.room not in set().union(*(imported(one) for one in MODULES))


def test_one_room_knows_the_hub() -> None:
    """Only `hub` imports the Hub's client, inside of functions and for type checkers too: it turns its errors into ours."""
    assert {module.room for module in MODULES if "huggingface_hub" in imported(module)} == {"hub"}


def test_rooms_are_listed() -> None:
    """Every room and every module at the top has its place among the layers, and there is no other."""
    assert {one.room for one in MODULES} - {"__init__"} == set(LAYERS)
    assert {one.name for one in PACKAGE.iterdir() if one.is_file()} == AT_THE_TOP


def test_rooms_are_packaged() -> None:
    """Every folder with modules is among the packages that a wheel holds."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        packages = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    made = {".".join(("safe_dtype", *one.parts[:-1])) for one in MODULES if one.path.name == "__init__.py"}
    assert packages == made | {"safe_dtype.model_cards"}


def test_names_stand_once() -> None:
    """No file name and no public class stands twice in the package."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        if module.path.name != "__init__.py":
            places[module.path.name].append(str(module))
        for node in ast.walk(ast.parse(module.path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[f"class {node.name}"].append(str(module))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_folder_sizes() -> None:
    """No folder has more than 20 files beside each other."""
    folders: dict[Path, int] = defaultdict(int)
    for module in MODULES:
        folders[module.path.parent] += module.path.name != "__init__.py"
    assert not {str(folder): files for folder, files in folders.items() if files > 20}


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_pure_rooms(room: str) -> None:
    """Nouns and decisions import no torch and no transformers, not even inside a function."""
    for module in (one for one in MODULES if one.room == room):
        assert not imported(module) & {"torch", "transformers", "accelerate"}, module


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import safe_dtype", id="package"),
        pytest.param("import safe_dtype.cli; safe_dtype.cli.cli(['--help'], standalone_mode=False)", id="help"),
        pytest.param("import safe_dtype.devices, safe_dtype.checkpoints", id="devices-and-checkpoints"),
    ],
)
def test_starts_without_torch(code: str) -> None:
    """Importing the package and asking for help import neither torch nor transformers."""
    check = (
        f"import sys; {code}; bad = {{'torch', 'transformers'}} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_module_sizes() -> None:
    """No module is longer than 400 lines."""
    long = {str(one): lines for one in MODULES if (lines := len(one.path.read_text().splitlines())) > 400}
    assert not long
