"""Whether there is a compiler for what inductor writes."""

from __future__ import annotations

import os
import shutil


def missing_compiler(device: str) -> str:
    """Return why inductor cannot compile for `device`; empty where it can."""
    asked = os.environ.get("CXX")
    candidates = (asked,) if asked else ("g++", "clang++", "cl")
    if not any(shutil.which(one) for one in candidates):
        return f"no C++ compiler (looked for {', '.join(candidates)}); install g++ or set CXX"
    if device.startswith("cuda"):
        from torch.utils._triton import has_triton

        if not has_triton():
            return "triton is not installed, and inductor writes its kernels for the GPU in it"
    return ""
