"""What `safe_dtype.integrations.vllm` touches of vLLM 0.33, and no more: its names, and what is called when.

For tests on machines without vLLM. Written after vllm/engine/arg_utils.py, vllm/plugins/__init__.py and vllm/platforms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch


def install(patch: pytest.MonkeyPatch, dtypes: tuple[torch.dtype, ...], plugins: list[Callable[[], None]]) -> Any:
    """Put modules by vLLM's names in place for one test, and return EngineArgs.

    Args:
        patch: Takes them away again.
        dtypes: What the platform has, best first.
        plugins: Called whenever an engine is asked for, as each process of vLLM calls them.
    """

    @dataclass
    class EngineArgs:
        model: str = "Qwen/Qwen3-0.6B"
        dtype: Any = "auto"
        revision: str | None = None
        quantization: str | None = None
        load_format: str = "auto"
        config_format: str = "auto"
        hf_overrides: dict[str, Any] = field(default_factory=dict)
        hf_token: bool | str | None = None
        trust_remote_code: bool = False
        download_dir: str | None = None
        tensor_parallel_size: int = 1
        pipeline_parallel_size: int = 1
        nnodes: int = 1
        data_parallel_size: int = 1
        data_parallel_size_local: int | None = None

        def __post_init__(self) -> None:
            for plugin in plugins:
                plugin()

        def create_model_config(self) -> dict[str, Any]:
            return {"model": self.model, "dtype": self.dtype}

    class Platform:
        device_type = "cpu"
        supported_dtypes = dtypes

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.engine", "vllm.engine.arg_utils", "vllm.platforms",
                                                   "vllm.config", "vllm.config.model")}  # fmt: skip
    modules["vllm.engine.arg_utils"].EngineArgs = EngineArgs  # type: ignore[attr-defined]
    modules["vllm.platforms"].current_platform = Platform()  # type: ignore[attr-defined]
    modules["vllm.config.model"]._FLOAT16_NOT_SUPPORTED_MODELS = {"gemma2": "unstable"}  # type: ignore[attr-defined]
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
    return EngineArgs
