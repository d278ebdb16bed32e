"""Compiles the rehearsal device, once for this torch and this compiler into the user's cache folder, and loads it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

SOURCES = Path(__file__).parent / "cpp"
PLUGIN = Path(__file__).parent / "plugin"
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-w")  # -w: torch's headers warn
_OLDEST_TORCH = (2, 13)  # whose headers the sources are written for


class UnbuildableError(Exception):
    """The rehearsal device cannot be built here; the message says why."""


def library() -> Path:
    """Return the compiled device, compiling it if nobody has. Safe for processes that do so at once.

    Raises:
        UnbuildableError: If there is no compiler, or torch is too old.
        subprocess.CalledProcessError: If the compiler finds an error; its output is on stderr.
    """
    compiler = _compiler()
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        raise UnbuildableError(f"the rehearsal device needs torch {'.'.join(map(str, _OLDEST_TORCH))} or newer")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safe_dtype_rehearsal"
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / f"{_key(compiler)}.so"
    with FileLock(built.with_suffix(".lock")):
        if not built.is_file():
            _compile(compiler, built)
    return built


def load() -> None:
    """Register the device in this process, and in all that it starts; before transformers and accelerate look for one.

    Raises:
        UnbuildableError: If it cannot be built here.
    """
    os.environ["REHEARSAL_LIBRARY"] = str(library())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PLUGIN), os.environ.get("PYTHONPATH"))))
    sys.path.append(str(PLUGIN))
    import torch_musa  # noqa: F401  it registers itself


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else ("g++", "clang++", "c++"):
        if path := shutil.which(name):
            return path
    raise UnbuildableError(
        f"the rehearsal device is built with a C++ compiler: there is no {asked or 'g++, clang++ or c++'}"
    )


def _key(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256(repr((torch.__version__, torch.__file__, compiler, version, _FLAGS)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _compile(compiler: str, built: Path) -> None:
    """Compile all sources side by side, and move the library to its place when it is whole."""
    torch_folder = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    headers = [f"-I{torch_folder / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        runs = []
        for source in sorted(SOURCES.glob("*.cpp")):
            command = [compiler, *_FLAGS, abi, *headers, "-c", str(source), "-o", f"{scratch}/{source.stem}.o"]
            runs.append(subprocess.Popen(command))
        for run in runs:
            if run.wait():
                raise subprocess.CalledProcessError(run.returncode, run.args)
        objects = [str(path) for path in Path(scratch).glob("*.o")]
        linked = Path(scratch) / "rehearsal.so"
        libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run([compiler, "-shared", *objects, *libraries, "-o", str(linked)], check=True)
        linked.replace(built)
