"""Imports go one way, and the command starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import safe_dtype

PACKAGE = Path(safe_dtype.__file__).parent

# What each part may import of the others. Data flows down this list, and nothing flows up.
ALLOWED = {
    "errors": set(),
    "dtypes": {"errors"},
    "gauges": set(),
    "facts": {"dtypes", "gauges"},
    "numerics": {"dtypes", "errors"},
    "devices": {"dtypes", "errors", "facts", "numerics"},
    "checkpoints": {"dtypes", "errors", "facts"},
    "planning": {"dtypes", "errors", "facts", "gauges"},
    "rescaling": {"devices", "dtypes", "errors", "facts", "gauges", "numerics"},
    "origin": {"errors", "planning"},
    "guarding": {"devices", "dtypes", "errors", "gauges", "numerics", "origin", "planning", "rescaling"},
    "testing": {"dtypes"},
    "loading": {
        "checkpoints", "devices", "dtypes", "errors", "facts", "gauges", "guarding", "numerics", "origin", "planning",
        "rescaling", "verifying",
    },
    "patching": {"devices", "errors", "loading", "planning"},
    "verifying": {"dtypes", "errors", "facts", "numerics"},
    "doctor": {"facts", "planning"},
    "audit_report": {"checkpoints"},
    "generation": {"errors", "guarding", "loading", "planning"},
    "verification": {"devices", "dtypes", "errors", "facts", "loading", "planning", "verifying"},
    "optimizing": {
        "checkpoints", "devices", "dtypes", "errors", "facts", "guarding", "loading", "planning", "verifying",
    },
    "publishing": {
        "checkpoints", "devices", "dtypes", "errors", "facts", "gauges", "guarding", "loading", "optimizing", "origin",
        "planning", "rescaling", "verifying",
    },
    "rescue": {"dtypes", "errors", "facts", "gauges", "loading", "planning"},
    "cli": {
        "audit_report", "checkpoints", "devices", "doctor", "dtypes", "errors", "generation", "loading", "optimizing",
        "patching", "planning", "publishing", "rescue", "verification",
    },
    "__main__": {"cli"},
    "run": {"cli"},
    "__init__": {
        "checkpoints", "devices", "dtypes", "errors", "facts", "guarding", "loading", "optimizing", "origin",
        "patching", "planning", "publishing", "verifying",
    },
}  # fmt: skip
WITHOUT_TORCH = ("errors", "dtypes", "gauges", "facts", "planning", "origin", "doctor")


def part_of(module: Path) -> str:
    """Return the folder, or for a module at the top its name."""
    relative = module.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(module: Path) -> set[str]:
    """Return the parts of safe_dtype, and the outside packages, that `module` imports anywhere in its code.

    Imports that only a type checker sees do not count.
    """
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    depth = len(module.relative_to(PACKAGE).parts)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_way(module: Path) -> None:
    """A module imports only parts that come before its own."""
    part = part_of(module)
    if part == "integrations":
        return
    ours = {name for name in imported(module) if name in ALLOWED}
    assert ours - {part} <= ALLOWED[part]


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_pure_parts(part: str) -> None:
    """Nouns and decisions import no torch and no transformers, not even inside a function."""
    for module in (one for one in MODULES if part_of(one) == part):
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
    long = {str(one): lines for one in MODULES if (lines := len(one.read_text().splitlines())) > 400}
    assert not long
