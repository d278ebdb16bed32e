"""Static caches, torch.compile and CUDA graphs: whether they run guarded as they do plain, and how fast."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._inductor.codegen.common
import transformers as tf

from safe_dtype import guard, report

from .place import Place, Row, generate, prompt_of, qwen3, seconds, seconds_per_token

Step = Callable[[Any, torch.Tensor], torch.Tensor]


class NotOnThisDeviceError(Exception):
    """The device has nothing that this way to run needs."""


def rows(place: Place) -> Iterator[Row]:
    """Yield a row for each way to run, plain and guarded; a way that fails, or is not there, is a row that says so."""
    shape = place.shapes[0]
    for way, run in _WAYS.items():
        answers: dict[str, torch.Tensor] = {}
        for kind in ("plain", "guarded"):
            torch.compiler.reset()
            model = qwen3(place, shape, torch.bfloat16)
            if kind == "guarded":
                guard(model)
            row: Row = {"shape": shape, "way": way, "kind": kind}
            try:
                figures, answers[kind] = run(place, model)
            except NotOnThisDeviceError as error:
                yield row | {"not_on_this_device": str(error)}
                continue
            except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
                yield row | {"error": f"{type(error).__name__}: {error}"[:400]}
                continue
            same = torch.equal(answers["plain"], answers["guarded"]) if len(answers) == 2 else None
            events = [str(event) for event in report(model).events] if kind == "guarded" else None
            yield row | figures | {"equal_to_plain": same, "events": events}


def _generated(place: Place, model: Any, **options: Any) -> tuple[Row, torch.Tensor]:
    prompt, tokens = prompt_of(place, model, place.count(64, 8)), place.count(64, 9)
    first = seconds(place, lambda: generate(model, prompt, tokens, **options))
    again = [seconds_per_token(place, model, prompt, tokens, **options) for _ in range(place.count(3, 1))]
    return {"first_s": first, "us_per_token": statistics.median(again) * 1e6}, generate(
        model, prompt, tokens, **options
    )


def _require_compiler(place: Place) -> None:
    common = torch._inductor.codegen.common
    common.init_backend_registration()
    if common.get_scheduling_for_device(torch.device(place.device).type) is None:
        raise NotOnThisDeviceError(f"torch.compile makes no kernels for {place.device}")


def _static_compiled(place: Place, model: Any) -> tuple[Row, torch.Tensor]:
    _require_compiler(place)
    # transformers compiles the decode of a static cache by itself where the device is CUDA; elsewhere it is told to.
    compiling = tf.generation.configuration_utils.CompileConfig()
    compiling._compile_all_devices = True
    return _generated(place, model, cache_implementation="static", compile_config=compiling)


def _compiled(place: Place, model: Any) -> tuple[Row, torch.Tensor]:
    _require_compiler(place)
    model.compile()
    return _generated(place, model)


def _captured(place: Place, model: Any) -> tuple[Row, torch.Tensor]:
    """Capture one step of one token in a CUDA graph, and replay it."""
    if not place.is_cuda:
        raise NotOnThisDeviceError(f"graphs are CUDA's, and {place.device} is none of its devices")
    from device_checks import captured_step  # type: ignore[import-not-found]  # of the tests, which hold what it gives

    token = torch.full((1, 1), 5, device=place.device)
    with torch.inference_mode():
        graph, logits = captured_step(model, token)
        token.fill_(7)
        times = [seconds(place, graph.replay) for _ in range(20)]
    return {"us_per_token": statistics.median(times) * 1e6}, logits.argmax(-1)


_WAYS: dict[str, Callable[[Place, Any], tuple[Row, torch.Tensor]]] = {
    "static cache": lambda place, model: _generated(place, model, cache_implementation="static", disable_compile=True),
    "static cache, compiled": _static_compiled,
    "model.compile()": _compiled,
    "CUDA graph of one step": _captured,
}
