"""What is known before any form is tried: what is installed, the files and their hashes, and whether a reference is usable.

Importing this module imports no torch: restoring a backup needs none.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingShardError
from ..store.hashing import Progress, read_all, sha256_of
from ..store.installed import installed_version

if TYPE_CHECKING:
    from torch import Tensor


# By import name: the distributions that bring it, the usual one first.
_PACKAGES = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "safetensors": ("safetensors",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "triton": ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows"),
}

# About a hundred roundings of a float32 near 1: smaller numbers are what is left where larger ones cancelled, or
# underflow. The matching scores of a LightGlue with random weights are at most 4e-7, and every form of it would pass.
_FLOOR = 1e-5
# Relative to the largest element of an output. Eight roundings of float32, and a hundredth of the limit for a form in
# float32: sums in another order stay below it, dropout and sampling are above it.
_SAME = 1e-6
_MASKED = -1e30  # a logit below it is a mask (-inf, or the smallest float32)


def environment() -> dict[str, Any]:
    """Return what the results depend on, as plain JSON values.

    A missing package is None, and only torch is imported. No name of a user or host and no path of this machine is in
    it, because it is published with the results.
    """
    import torch

    from ..devices.processor import cpu_capability, cpu_name
    from ..devices.settings import settings

    config = torch.__config__.show()
    onednn = re.search(r"(?:MKL-DNN|oneDNN) v([\d.]+)", config)
    return {
        "python": platform.python_version(),
        "platform": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "packages": {name: installed_version(*brought_by) for name, brought_by in _PACKAGES.items()},
        "compiler": _compiler(),
        "cpu": {"name": cpu_name(), "isa": cpu_capability(), "cores": os.cpu_count()},
        "onednn": onednn[1] if onednn else None,
        # Settings of torch and oneDNN, such as ONEDNN_MAX_CPU_ISA. Values that contain a path are left out.
        "settings": {name: value for name, value in settings() if not re.search(r"[/\\]", value)},
        "threads": {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": _gpus(),
        "load_average": [round(one, 2) for one in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def files_in(source: Path) -> dict[str, Path]:
    """Return every regular file of a folder under its name (relative, with "/"), or the one file that `source` is.

    Symbolic links are followed, since the files of a folder in the Hub's cache are links; a folder that was seen
    already is not entered again. Sockets, pipes and devices are left out.

    Raises:
        MissingShardError: If a link leads nowhere, for example after an interrupted download.
        FileNotFoundError: If there is no `source`.
    """
    if not source.exists():
        raise FileNotFoundError(f"There is no {source}.")
    if source.is_file():
        return {source.name: source}
    return dict(sorted(_walk(source)))


def hashes(source: Path, *, progress: Progress | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder, or of one file, in hexadecimal, by name as `files_in` has them.

    Files are read in blocks, several at a time; no file is held in memory.

    Raises:
        MissingShardError: If a link leads nowhere.
        OSError: If a file cannot be read.
    """
    return read_all(files_in(source), sha256_of, progress=progress)


def reference_sanity(run: Callable[[], Mapping[str, Tensor]]) -> dict[str, Any]:
    """Run a reference twice, and return whether forms can be compared with it, as plain JSON values.

    `run` returns the outputs by name, always on the same inputs. The result has:

    - `steady`: whether both runs gave the same up to rounding, and `repeat_max_abs`: the largest difference (None
      where there is no number for it: other shapes, or NaN in other places);
    - `finite`: no NaN and no infinity, the -inf that masks logits aside;
    - `degenerate`: whether an output is only rounding, or every floating output is empty or constant;
    - `largest`: the largest finite |element| of floating outputs, where there are any, and `outputs`: shape, dtype, `absmax`, `std` and the like of each;
    - `problems`: why no form can be compared with it; empty where it is usable;
    - `weak`: which figures say less than they seem to, although it is usable: a constant output among others that vary
      (a mask), logits with the same top class in all rows (every form agrees on the top class then).
    """
    # Copied: the second run may write into the memory of the first.
    first = {name: value.detach().cpu().clone() for name, value in run().items()}
    second = {name: value.detach().cpu() for name, value in run().items()}
    outputs = {name: _facts(name, value) for name, value in first.items()}
    repeated = _repeated(first, second)
    floating = {name for name, value in first.items() if not _is_whole(value)}
    steady = all(
        difference <= (_SAME * (outputs[name]["absmax"] or 0.0) if name in floating else 0.0)
        for name, difference in repeated.items()
    )
    largest_difference = max(repeated.values(), default=0.0)
    idle = {name: facts["problem"] for name, facts in outputs.items() if facts["problem"]}
    broken = [
        f"{name} has {facts['nonfinite']} NaN or infinite elements"
        for name, facts in outputs.items()
        if facts["nonfinite"]
    ]
    # A constant output may be a mask. An output that is only noise is unfit: it hides a form that computes it wrongly.
    noise = {name: problem for name, problem in idle.items() if outputs[name]["noise"]}
    # Ids and masks say nothing of the numbers beside them.
    judged = floating or outputs.keys()
    unfit = {name: idle[name] for name in judged} if judged <= idle.keys() else noise
    degenerate = bool(unfit) or not outputs
    problems = list(broken)
    if not steady:
        by_how_much = (
            f"by up to {largest_difference:.3g}" if math.isfinite(largest_difference) else "in shape, or in NaN"
        )
        problems.append(f"two runs on the same inputs differ {by_how_much}")
    if degenerate:
        problems += [f"{name} {problem}" for name, problem in unfit.items()] or ["it gives no tensors"]
    weak = [f"{name} {problem}" for name, problem in idle.items() if name not in unfit]
    weak += [text for name, value in first.items() if (text := _one_class(name, value))]
    return {
        "steady": steady,
        "repeat_max_abs": largest_difference if math.isfinite(largest_difference) else None,
        "finite": not broken,
        "degenerate": degenerate,
        "largest": max((outputs[name]["absmax"] or 0.0 for name in judged), default=0.0),
        "outputs": outputs,
        "problems": problems,
        "weak": weak,
    }


def _compiler() -> dict[str, str] | None:
    """Return the C++ compiler that inductor takes: $CXX, else the usual one; None where it does not start."""
    usual = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    compiler = shutil.which(os.environ.get("CXX", usual))
    if compiler is None:
        return None
    # cl has no --version: it prints its version and an error.
    asked = [compiler] if platform.system() == "Windows" else [compiler, "--version"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(r"\d+\.\d+(\.\d+)*", done.stdout.partition("\n")[0] or done.stderr)
    if number is None or (done.returncode and platform.system() != "Windows"):
        return None
    return {"name": Path(compiler).name, "version": number[0]}


def _gpus() -> list[dict[str, Any]]:
    import torch

    from ..devices import memory_of
    from ..devices.accelerators import accelerators

    if not torch.cuda.is_available():
        return [
            {"name": gpu.name, "capability": gpu.capability, "bytes": memory_of(gpu.device).total_bytes}
            for gpu in accelerators()
        ]
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": one.name, "capability": f"{one.major}.{one.minor}", "bytes": one.total_memory} for one in gpus]


def _walk(source: Path) -> Iterator[tuple[str, Path]]:
    seen = set()
    for folder, inner, names in os.walk(source, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:  # a link to a folder above it
            inner.clear()
            continue
        seen.add(real)
        for name in names:
            file = Path(folder, name)
            if file.is_symlink() and not file.exists():
                raise MissingShardError(
                    str(source), f"{file.relative_to(source).as_posix()} is a link to a file that is not there",
                    "download the model again",
                )  # fmt: skip
            if file.is_file():
                yield file.relative_to(source).as_posix(), file


def _facts(name: str, value: Tensor) -> dict[str, Any]:
    import torch

    numbers = value.abs().double() if value.is_complex() else value.double()
    masks = (numbers < _MASKED) & ("logits" in name)
    numbers = numbers[~masks]
    finite = numbers[numbers.isfinite()]
    absmax = float(finite.abs().max()) if len(finite) else None
    std = float(finite.std(correction=0)) if len(finite) else None
    problem, noise = "", False
    if absmax is None or std is None:
        problem = "is empty" if not value.numel() else "has no finite element"
    elif len(finite) > 1 and (bool((finite == finite[0]).all()) or std < _SAME * absmax):
        problem = f"is {float(finite[0]):.3g} everywhere, up to rounding"
    elif noise := value.dtype.is_floating_point and len(finite) > 1 and absmax < _FLOOR:
        problem = f"is zero but for rounding: its largest element is {absmax:.3g}"
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "absmax": absmax,
        "std": std,
        "nonfinite": int(torch.count_nonzero(~numbers.isfinite())),
        "noise": noise,
        "problem": problem,
    }


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex()


def _repeated(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Return for each output the largest difference of two runs, infinite where they cannot be subtracted."""
    if first.keys() != second.keys():
        return dict.fromkeys(first, math.inf)
    return {name: _difference(value, second[name]) for name, value in first.items()}


def _difference(once: Tensor, again: Tensor) -> float:
    import torch

    if once.shape != again.shape or once.dtype != again.dtype:
        return math.inf
    # The difference of equal infinities would be NaN.
    differ = (once != again) & ~(once.isnan() & again.isnan())
    apart = (once[differ].to(torch.complex128) - again[differ].to(torch.complex128)).abs()
    return float(apart.nan_to_num(nan=math.inf).max()) if len(apart) else 0.0


def _one_class(name: str, logits: Tensor) -> str:
    if "logits" not in name or logits.ndim < 2 or not logits.numel():
        return ""
    classes = logits.argmax(1 if logits.ndim == 4 else -1).flatten()
    of_how_many = logits.shape[1 if logits.ndim == 4 else -1]
    if of_how_many < 2 or len(classes) < 2 or bool((classes != classes[0]).any()):
        return ""
    return f"{name}: class {int(classes[0])} is on top in all {len(classes)} rows, so agreement on it says nothing"
