"""`register`: what vLLM calls in each of its processes, and what it changes there."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safe_dtype.errors import EnvironmentNotFitError, NotServableError
from safe_dtype.errors.warn import warn
from safe_dtype.facts import COMPUTE
from safe_dtype.patching.import_hook import ImportHook
from safe_dtype.patching.patch_in_force import patch_now
from safe_dtype.patching.telling import tell_text
from safe_dtype.processes.child import how_it_ended, last_error, status_of
from safe_dtype.store.temporary import temporary_folder

logger = logging.getLogger(__name__)

_ARGUMENTS, _MAKES_CONFIG = "vllm.engine.arg_utils", "create_model_config"  # of EngineArgs, where vLLM settles a dtype
_CHILD = "safe_dtype.integrations.vllm.choose_dtype"
_SECONDS = 3600.0  # a large model that is measured is read from disk once
# By argument of vLLM, with what a checkpoint is read as it lies there.
_PLAIN = {
    "quantization": (None,),
    "quantization_config": (None,),
    "load_format": ("auto", "hf", "safetensors", "pt", "fastsafetensors"),
    "config_format": ("auto", "hf"),
}


def register() -> None:
    """Have vLLM serve each model in the dtype that is planned for it. It may be called any number of times.

    What is wrapped is `EngineArgs.create_model_config`: it runs once for each engine, in the process that was asked for
    it, and the engine's workers are told what came of it. A process that makes no engine imports nothing for this.
    """
    arguments = sys.modules.get(_ARGUMENTS)
    if arguments is not None:
        _attach(arguments)
    elif _hook not in sys.meta_path:
        sys.meta_path.insert(0, _hook)


def _attach(arguments: Any) -> None:
    original = getattr(getattr(arguments, "EngineArgs", None), _MAKES_CONFIG, None)
    if not callable(original):
        logger.warning("this vLLM has no EngineArgs.%s: models are served as without safe_dtype", _MAKES_CONFIG)
    elif not hasattr(original, "_safe_dtype_plans"):
        arguments.EngineArgs.create_model_config = _planning(original)


_hook = ImportHook(_ARGUMENTS, _attach)


def _planning(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def create_model_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Make the config with the planned dtype.

        Raises:
            NotServableError: If vLLM would compute something else than the model.
        """
        asked = self.dtype
        self.dtype = _told(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            self.dtype = asked  # the next one is planned from what the caller said, not from what we did

    create_model_config._safe_dtype_plans = True  # type: ignore[attr-defined]
    return create_model_config


def _told(engine: Any) -> Any:
    """Return the dtype that vLLM is told for what an engine is asked for, or the very one that it was asked for."""
    if why := _own_affair(engine):
        logger.info("%s: the dtype is left to vLLM: %s", engine.model, why)
        return engine.dtype
    tell_text(f"{engine.model}: planning the dtype that vLLM serves it in", "register", {"model": str(engine.model)})
    answer = _answer(json.dumps(_job(engine)), _token(engine))
    if "refused" in answer:
        raise NotServableError(*answer["refused"])
    choice = answer["told"]
    for text in choice["warnings"]:
        warn(text)
    what = f"{choice['dtype']} for vLLM" if choice["dtype"] else "the dtype is left to vLLM"
    tell_text(f"{engine.model}: {what}: {choice['reason']}", "register", {"model": str(engine.model)})
    return choice["dtype"] or engine.dtype


def _own_affair(engine: Any) -> str:
    """Return why an engine's weights are not those of a checkpoint as it lies there; empty where they are."""
    for name, plain in _PLAIN.items():
        value = getattr(engine, name, plain[0])
        if getattr(value, "value", value) not in plain:
            return f"{name}={value}"
    if getattr(engine, "hf_overrides", None):
        return "hf_overrides make another model of it"
    if "://" in str(engine.model) or str(engine.model).endswith(".gguf"):
        return "it is read from elsewhere, or is a GGUF file"
    machines, replicas = getattr(engine, "nnodes", 1), getattr(engine, "data_parallel_size", 1)
    if machines > 1 or (getattr(engine, "data_parallel_size_local", None) or replicas) < replicas:
        return "several machines plan each for itself, and have to agree: pass a --dtype that all of them have"
    return ""


def _job(engine: Any) -> dict[str, Any]:
    """Return what `choose_dtype` is asked, as values of JSON."""
    places = {"revision": "revision", "download_dir": "cache_dir", "trust_remote_code": "trust_remote_code"}
    arguments = {ours: value for name, ours in places.items() if (value := getattr(engine, name, None))}
    devices = getattr(engine, "tensor_parallel_size", 1) * getattr(engine, "pipeline_parallel_size", 1)
    platform, in_force = _platform(), patch_now()
    is_cpu = getattr(platform, "device_type", "") == "cpu"
    if devices > 1 and not is_cpu:
        arguments["device_map"] = "auto"  # the worst of all devices counts
    return {
        "model": str(engine.model),
        "dtype": str(engine.dtype),
        "arguments": arguments,
        "device": "cpu" if is_cpu else None,
        "dtypes": [str(one) for one in getattr(platform, "supported_dtypes", None) or COMPUTE],
        "without_float16": sorted(_without_float16()),
        "policy": None if in_force is None else str(in_force.policy),
    }


def _platform() -> Any:
    from vllm.platforms import current_platform

    return current_platform


def _without_float16() -> Any:
    """Return the model types that this vLLM refuses float16 to; none where it keeps no such list, or keeps it elsewhere."""
    return getattr(sys.modules.get("vllm.config.model"), "_FLOAT16_NOT_SUPPORTED_MODELS", ())


def _token(engine: Any) -> str:
    token = getattr(engine, "hf_token", None)
    return token if isinstance(token, str) else ""


@functools.lru_cache(maxsize=64)
def _answer(job: str, token: str) -> dict[str, Any]:
    """Return the answer of `choose_dtype`, run in a process of its own.

    Raises:
        EnvironmentNotFitError: If that process fails.
    """
    with temporary_folder("safe_dtype-vllm-") as folder:
        order, log = folder / "job.json", folder / "log"
        order.write_text(job, encoding="utf-8")
        settings = {"HF_TOKEN": token} if token else {}
        status = status_of(_CHILD, order, log=log, end=time.monotonic() + _SECONDS, settings=settings)
        if status != 0:
            raise EnvironmentNotFitError(
                f"a plan for vLLM: the process that makes it {how_it_ended(status, _SECONDS)}: {last_error(log)}",
                "run `safe-dtype plan` on the model, which shows what is wrong; VLLM_PLUGINS='' serves it without a plan",
            )
        answer: dict[str, Any] = json.loads(Path(folder / "answer.json").read_text(encoding="utf-8"))
        return answer
