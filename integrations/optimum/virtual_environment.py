"""A virtual environment for packages that cannot be installed beside ours, made once, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from safe_dtype.errors import EnvironmentNotFitError
from safe_dtype.processes.child import how_it_ended, last_error, run
from safe_dtype.store import cache_folder
from safe_dtype.store.installed import installed_version

logger = logging.getLogger(__name__)

MARKER = "complete.json"
_LIMIT = 1800.0  # seconds to make it in, or to wait for another process that does: PyTorch may be a large download

# optimum-onnx 0.1 wants transformers < 4.58 and optimum 2.1. The file is run by the onnxruntime that is here, and
# torch is this one too, so that both sides compute with the same kernels.
# optimum-intel 2.2 wants transformers < 5.6; OpenVINO's own package runs what it writes.
_FIXED: Mapping[str, tuple[str, ...]] = {
    "optimum-onnx": ("optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6"),
    "optimum-intel": ("optimum-intel==2.2.0", "openvino==2026.4.1", "transformers==5.5.4"),
}
_TORCH = {"torch": ("torch",)}
_AS_HERE: Mapping[str, Mapping[str, tuple[str, ...]]] = {  # by way, and package: the distributions that may carry it
    "optimum-onnx": _TORCH | {"onnx": ("onnx",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")},
    "optimum-intel": _TORCH,
}
VIAS = ("optimum-onnx",)  # that `optimize --via` takes: each makes a form
# Variables of this process' Python, which would make another one import packages from here.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def environment(via: str, *, progress: Callable[[str], None] = logger.info) -> Path:
    """Return the folder of the environment for `via`, made with pip where it is not there yet.

    It is made aside and renamed when complete: one that was interrupted is never used. Other processes wait.

    Args:
        via: One of VIAS.
        progress: Called with a line of text before the environment is made, which takes long.

    Raises:
        EnvironmentNotFitError: If it cannot be made here, with what pip said.
    """
    pins, folder = pins_of(via), folder_of(via)
    if _is_complete(folder, pins):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock"), timeout=_LIMIT):
            if not _is_complete(folder, pins):
                progress(f"making an environment for {via}, once, in {folder}: {', '.join(pins)}")
                _make(folder, pins, via)
    except Timeout:
        problem = f"an environment for {via}: another process has been making it for {_LIMIT:.0f} s"
        raise EnvironmentNotFitError(problem, f"end that process, or delete {folder}.lock") from None
    except OSError as exc:
        advice = "free the disk, or set SAFE_DTYPE_CACHE to a folder that can be written"
        raise EnvironmentNotFitError(f"an environment for {via} ({exc})", advice) from exc
    return folder


def pins_of(via: str) -> tuple[str, ...]:
    """Return the packages of the environment for `via`, each with its version.

    Raises:
        EnvironmentNotFitError: If `via` is not one of VIAS, or a package is not here that must have the same version.
    """
    if via not in _FIXED:
        raise EnvironmentNotFitError(f"a way to export that is called {via!r}", f"--via takes {', '.join(VIAS)}")
    return (*_FIXED[via], *(f"{name}=={_version_here(name, carriers)}" for name, carriers in _AS_HERE[via].items()))


def folder_of(via: str) -> Path:
    """Return where the environment for `via` is or will be: another folder for other pins, and for another Python."""
    text = json.dumps([*pins_of(via), f"{sys.version_info.major}.{sys.version_info.minor}"])
    return cache_folder() / "environments" / f"{via}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def run_python(python: Path, *arguments: str, log: Path, end: float) -> int | None:
    """Run `python` isolated from this process' packages, and return as `processes.child.run` does.

    Other environment variables stay, so that pip asks the same index as the user's pip.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    return run([str(python), "-I", *arguments], log=log, end=end, environment=environment)


def _version_here(name: str, carriers: tuple[str, ...]) -> str:
    """Return the release of `name`, without the "+cpu" or "+cu130" of an index: pip chooses among these."""
    if (version := installed_version(*carriers)) is not None:
        return version.partition("+")[0]
    raise EnvironmentNotFitError(f"{name}, which runs what is exported", "`python -m pip install 'safe-dtype[onnx]'`")


def _is_complete(folder: Path, pins: tuple[str, ...]) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return marker == {"pins": list(pins)} and python_of(folder).exists()  # gone where its base Python was removed


def _make(folder: Path, pins: tuple[str, ...], via: str) -> None:
    aside, log = folder.with_name(f"{folder.name}.making"), folder.with_name(f"{folder.name}.log")
    for leftover in (aside, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    log.unlink(missing_ok=True)
    end = time.monotonic() + _LIMIT
    steps = (
        (Path(sys.executable), ("-m", "venv", str(aside))),
        (python_of(aside), ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", *pins)),
    )
    try:
        for python, arguments in steps:
            status = run_python(python, *arguments, log=log, end=end)
            if status != 0:
                raise EnvironmentNotFitError(
                    f"an environment for {via}: making it {how_it_ended(status, _LIMIT)}: {last_error(log)}",
                    f"see {log}; pip asks where yours does (`pip config list`), and needs about 1.5 GB of disk",
                )
        (aside / MARKER).write_text(json.dumps({"pins": list(pins)}), encoding="utf-8")
        # Scripts in bin/ name the folder that they were installed in. Nothing here calls them: python -m needs none.
        os.replace(aside, folder)  # noqa: PTH105  # atomic on every platform
    finally:
        shutil.rmtree(aside, ignore_errors=True)
