"""Markers: `@pytest.mark.needs("cuda")` skips elsewhere, and `--must-have cuda` turns the skip into a failure.

What is needed is hardware, a name of `NEEDS`, or else the module of a tool: `needs("peft")`, or a version of a package that
is newer than the lowest one: `needs("transformers>=5.21")`.

`--device rehearsal` gives this run an accelerator of host memory: see tests/accelerator/conftest.py.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

# Workers of xdist share the cores: with torch's own threads beside that the suite takes three times as long. Set before
# torch is imported, and for what tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What inductor compiles is kept for this run alone, for all of its workers: a folder that other runs share may hold
# kernels for other CPU settings, on which the process aborts.
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled = tempfile.mkdtemp(prefix="safe_dtype_inductor_")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)

# No test asks the Hub. Set before the imports below, which read it once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from limited_memory import can_limit
from packaging.version import InvalidVersion, Version
from recorded_cpu import record_for_children, recorded_cpu
from transformers.utils import is_gguf_available

ROOT = Path(__file__).resolve().parent.parent


def _cpu_flag(name: str) -> Callable[[], bool]:
    def has_it() -> bool:
        ask = getattr(torch.cpu, "get_capabilities", dict)  # newer than torch 2.6
        return bool(ask().get(name)) and "ATEN_CPU_CAPABILITY" not in os.environ

    return has_it


def _transformers_reads_gguf() -> bool:
    try:
        return bool(is_gguf_available())
    except InvalidVersion:  # on Python 3.10, where transformers cannot tell which version of gguf is installed
        return False


def _transformers_loads_adapters() -> bool:
    if importlib.util.find_spec("peft") is None:
        return False
    from transformers.integrations.peft import MIN_PEFT_VERSION

    return Version(version("peft")) >= Version(MIN_PEFT_VERSION)  # 5.24 asks for one after 0.21


NEEDS: dict[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_available() and torch.version.hip is None,
    "rocm": lambda: torch.cuda.is_available() and torch.version.hip is not None,
    "mps": torch.backends.mps.is_available,
    "xpu": torch.xpu.is_available,
    "pagemap": lambda: os.access("/proc/self/pagemap", os.R_OK),  # a Linux that tells which pages are a file's
    "serve": lambda: all(map(importlib.util.find_spec, ("fastapi", "uvicorn", "openai"))),  # transformers[serving]
    "openvino": lambda: "SAFE_DTYPE_OPTIMUM_INTEL" in os.environ,  # an interpreter with it, or "" to make one with pip
    "control_group": can_limit,  # a Linux where this process may limit the memory of another
    "x86": lambda: platform.machine() in ("x86_64", "AMD64"),
    "amx": _cpu_flag("amx_bf16"),
    "adapter_loader": _transformers_loads_adapters,
    "gguf_loader": _transformers_reads_gguf,
    "no_bf16_cpu": lambda: not any(_cpu_flag(flag)() for flag in ("amx_bf16", "avx512_bf16", "bf16")),
}


def _is_here(need: str) -> bool:
    package, is_version, lowest = need.partition(">=")
    if is_version:
        return Version(version(package)) >= Version(lowest)
    return NEEDS[need]() if need in NEEDS else importlib.util.find_spec(need) is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--must-have` and `--device`."""
    parser.addoption(
        "--must-have", default="", help="hardware and modules (comma separated) whose absence is a failure"
    )
    parser.addoption("--device", choices=["rehearsal"], help="have an accelerator that is rehearsed in host memory")


def pytest_configure(config: pytest.Config) -> None:
    """Register the rehearsal device, before anything that looks for accelerators is imported."""
    if config.getoption("--device") == "rehearsal":
        from accelerator.building import UnbuildableError, load

        try:
            load()
        except UnbuildableError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the children of tests/accelerator have skipped."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "skipped in a child":
                terminalreporter.line(str(text))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `-k needs_cuda` select the tests that need it."""
    item.extra_keyword_matches.update(f"needs_{name}" for mark in item.iter_markers("needs") for name in mark.args)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test that needs what is absent."""
    must_have = item.config.getoption("--must-have").split(",")
    for need in (name for mark in item.iter_markers("needs") for name in mark.args):
        if not _is_here(need):
            (pytest.fail if need in must_have else pytest.skip)(f"needs {need}")


@pytest.fixture(scope="session", autouse=True)
def _recorded_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test plans for one recorded CPU; tests/devices measures the one that is here.

    Verdicts are read and written in a folder of this run, never the user's, by fixtures of the session already.
    """
    os.environ["SAFE_DTYPE_CACHE"] = str(tmp_path_factory.mktemp("verdicts"))
    with recorded_cpu():
        yield


@pytest.fixture(scope="module", autouse=True)
def _verdicts(_recorded_cpu: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every file of tests begins with the recorded figures, whatever the processes of others have measured."""
    os.environ["SAFE_DTYPE_CACHE"] = str(tmp_path_factory.mktemp("verdicts"))
    record_for_children()


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_the_suite_is_garbage() -> None:
    """A full collection of garbage, of which a load makes several, passes over what is there when a file begins.

    With all tests and all of transformers in memory each takes half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _leaves_torch_compiling() -> Iterator[None]:
    """No file of tests leaves compiled code switched off in this process, or a dispatch mode on: others would find it so."""
    yield
    frames = sys.modules.get("torch._dynamo.eval_frame")
    assert frames is None or frames._stance.stance == "default"
    modes = sys.modules.get("torch.utils._python_dispatch")
    assert modes is None or not modes._get_current_dispatch_mode_stack()


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_qwen3() -> Path:
    """The bundled trained model."""
    folder = ROOT / "examples" / "tiny-qwen3"
    record_for_children(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the folder of a tiny checkpoint (a name of `tiny_models.TINY`), made once."""
    from tiny_models import TINY

    made: dict[tuple[str, str], Path] = {}

    def folder(name: str = "qwen3", dtype: str = "bfloat16") -> Path:
        if (name, dtype) not in made:
            made[name, dtype] = TINY[name].save(tmp_path_factory.mktemp(name) / "model", getattr(torch, dtype))
        return made[name, dtype]

    return folder
