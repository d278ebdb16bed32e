"""Imports go one way, and the command starts without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same reader
    import tomli as tomllib

import safe_dtype

PACKAGE = Path(safe_dtype.__file__).parent
ROOT = Path(__file__).resolve().parent.parent

# From the ground up. A room imports only rooms that stand before it, for type checkers too; nothing points up.
LAYERS = (
    "errors",
    "processes",
    "store",
    "rendering",
    "facts",
    "planning",
    "hub",
    "numerics",
    "kernels",
    "checkpoints",
    "verifying",
    "models",
    "devices",
    "rescaling",
    "decoding",
    "guarding",
    "testing",
    "loading",
    "ranks",
    "training",
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
OUTSIDE = {"benchmarks", "examples"}


@cache
def parsed(path: Path) -> ast.Module:
    """Return the code of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(module: Module) -> set[str]:
    """Return the rooms of safe_dtype, and the outside packages, that `module` imports anywhere in its code."""
    return imported_by(parsed(module.path), depth=len(module.parts))


def imported_by(code: ast.Module, *, depth: int) -> set[str]:
    """Return the same of the code of a module that lies `depth` - 1 folders below `safe_dtype`.

    Imports that only a type checker sees count as well. A string that names a module of ours counts: it is imported by
    `import_module`, or started as a process; so does one that is Python with such an import. What is taken from
    `safe_dtype` itself is of any room: it counts as `FACE`.
    """
    names: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names |= {_room_named(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= _rooms_from(node, depth)
        elif isinstance(node, ast.Call) and _name_of(node.func) in ("import_module", "__import__"):
            names |= _rooms_called(node)
        elif isinstance(node, ast.JoinedStr) and _beginning(node).startswith("safe_dtype."):
            names.add(FACE)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= _rooms_in_text(node.value, depth)
    return names


FACE = "safe_dtype"
_NAMES_A_MODULE = re.compile(r"safe_dtype(\.\w+)+")
_NAMES_ONE_ABOVE = re.compile(r"(\.+)(\w+)(\.\w+)*")  # for import_module: "..guarding.guard"


def _room_named(module: str) -> str:
    ours, _, rest = module.partition("safe_dtype.")
    return rest.partition(".")[0] if not ours and rest else module.partition(".")[0]


def _rooms_from(node: ast.ImportFrom, depth: int) -> set[str]:
    if node.level == 0 and node.module != FACE:
        return {_room_named(str(node.module))}
    if node.level not in (0, depth):
        return set()  # in its own room
    if node.level and node.module:
        return {node.module.partition(".")[0]}
    return {alias.name if alias.name in (*LAYERS, "__version__") else FACE for alias in node.names}


def _rooms_called(call: ast.Call) -> set[str]:
    """Return what a call of `import_module` names in its text; a relative name may be one of ours in any room."""
    if any(isinstance(one, ast.JoinedStr) and _beginning(one).startswith("..") for one in call.args):
        return {FACE}
    texts = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if len(texts) == 2:  # import_module(".guarding", "safe_dtype")
        return {_room_named(texts[1] + texts[0])}
    return {_room_named(text) for text in texts if not text.startswith(".")}


def _rooms_in_text(text: str, depth: int) -> set[str]:
    if _NAMES_A_MODULE.fullmatch(text):
        return {_room_named(text)}
    if (relative := _NAMES_ONE_ABOVE.fullmatch(text)) and len(relative[1]) == depth:
        return {relative[2]} & set(LAYERS)
    if "import" not in text or "safe_dtype" not in text:
        return set()
    try:
        return imported_by(ast.parse(text), depth=0) & {
            *LAYERS
        }  # the code of a child process; what it takes from FACE it shows
    except SyntaxError:
        return set()


def _name_of(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _beginning(text: ast.JoinedStr) -> str:
    first = text.values[0] if text.values else None
    return str(first.value) if isinstance(first, ast.Constant) else ""


@pytest.mark.parametrize(
    "code",
    [
        "from ..guarding import guard",
        "from .. import guarding",
        "from safe_dtype import guarding",
        "import safe_dtype.guarding as other",
        "from safe_dtype.guarding.guard import guard",
        "def late():\n    from ..guarding import guard",
        "if TYPE_CHECKING:\n    from ..guarding.guard import guard",
        "import_module('..guarding.guard', __package__)",
        "importlib.import_module('.guarding', 'safe_dtype')",
        "__import__('safe_dtype.guarding')",
        "_ON_USE = {'guard': '..guarding'}",
        "_CHILD = 'safe_dtype.guarding.float16'",
        "run([sys.executable, '-c', 'import sys; from safe_dtype.guarding import guard'])",
    ],
)
def test_import_is_seen(code: str) -> None:
    """In whatever way a module of a room imports another room, it is seen."""
    assert "guarding" in imported_by(ast.parse(code), depth=2)


@pytest.mark.parametrize(
    "code",
    [
        "from safe_dtype import guard",
        "from .. import guard",
        "import safe_dtype",
        "import_module(f'safe_dtype.{room}')",
        "import_module(f'..{room}', __package__)",
    ],
)
def test_face_is_seen(code: str) -> None:
    """So is what may be of any room: a name that `safe_dtype` itself shows, and a module whose name is put together."""
    assert FACE in imported_by(ast.parse(code), depth=2)


def test_own_room_is_no_import() -> None:
    """What a module takes from its own room is left out, however deep it lies."""
    code = "from .. import guarding\nfrom . import b\nimport_module('.c', __name__)"
    assert not imported_by(ast.parse(code), depth=3)


def points_up(module: Module) -> set[str]:
    """Return the rooms that `module` imports, and that do not stand before its own."""
    if module.room == "__init__":
        return set()  # the face: it shows names of any room
    below = LAYERS[: LAYERS.index(module.room)]
    ours = {name for name in imported(module) if name in (*LAYERS, FACE)}
    if module.path.name == "sitecustomize.py":
        ours -= {FACE}  # it stands outside: the Python that runs it may have no safe_dtype
    if str(module) == "integrations/accelerate/launching.py":
        ours -= {"run"}  # what other processes start with; nothing is imported in this one
    return ours - {module.room, *below}


def test_one_way() -> None:
    """A module imports only rooms that stand before its own."""
    assert not {str(module): rooms for module in MODULES if (rooms := points_up(module))}


def test_nothing_imports_from_outside() -> None:
    """Benchmarks and examples stand above the package: they import it, and nothing of it imports them."""
    assert not [str(module) for module in MODULES if imported(module) & OUTSIDE]


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
        for node in ast.walk(parsed(module.path)):
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
