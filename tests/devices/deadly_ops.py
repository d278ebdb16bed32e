"""Operations for a child process to run: each really ends it, or never comes back."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from safe_dtype.devices.probing.op_case import OpCase, Shape
from safe_dtype.devices.probing.ops import OPS as REAL_OPS
from safe_dtype.devices.probing.ops import Op
from safe_dtype.devices.probing.workspace import Workspace
from safe_dtype.facts import Dtype


def _once(_: Sequence[Shape]) -> Sequence[Shape]:
    return ((0, 0),)


def _op(deed: Callable[[], object]) -> Op:
    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        def call(_: int) -> Tensor:
            deed()
            return torch.zeros(1)

        return OpCase(call, lambda y: (y, y.double()), work=float(rows))

    return Op(build, _once)


def _say_and_abort() -> None:
    sys.stderr.write("LLVM ERROR: Cannot select: bf16 = fadd\n")
    sys.stderr.flush()
    os.abort()


def _lose_the_device() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _print_noise() -> None:
    sys.stdout.write('{"not": "ours"}\n')
    sys.stdout.flush()


OPS: dict[str, Op] = {
    "softmax": replace(REAL_OPS["softmax"]),
    "segfault": _op(lambda: ctypes.string_at(0)),
    "abort": _op(_say_and_abort),
    "hang": _op(lambda: time.sleep(3600)),
    "exit": _op(lambda: os._exit(3)),
    "lost": _op(_lose_the_device),
    "noise": _op(_print_noise),
}
