"""Pipelines of diffusers in tests: loaded planned or plainly, run, and switched by hand at a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ("StableDiffusion", "SDXL", "SD3", "Flux", "HunyuanVideo15")
ENDS = {"StableDiffusion": "conv_out", "SDXL": "conv_out"}  # the last layer of the part that denoises


def safely(folder: Path, **arguments: Any) -> Any:
    """Return the pipeline, planned and guarded."""
    from safe_dtype.integrations.diffusers import SafeDiffusionPipeline

    return SafeDiffusionPipeline.from_pretrained(folder, **arguments)


def plainly(folder: Path, dtype: Any) -> Any:
    """Return the pipeline of plain diffusers."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, dtype=dtype)


def events(pipeline: Any) -> dict[str, list[tuple[str, str | None]]]:
    """Return what happened to each part: kinds and remedies."""
    from safe_dtype.integrations.diffusers import reports_of

    happened = {name: [(str(e.kind), e.remedy) for e in own.events] for name, own in reports_of(pipeline).items()}
    return {name: own for name, own in happened.items() if own}


def pictures(pipeline: Any, **more: Any) -> torch.Tensor:
    """Return what one seeded run makes."""
    from tiny_pipelines import call_of

    name = next(
        name
        for name in NAMES
        if name in type(pipeline).__name__.replace("StableDiffusionXL", "SDXL").replace("StableDiffusion3", "SD3")
    )
    pipeline.set_progress_bar_config(disable=True)
    if name == "HunyuanVideo15":
        pipeline.tokenizer_max_length = 16  # of 1000 tokens of padding
    output = pipeline(**call_of(name), generator=torch.Generator().manual_seed(0), **more)
    return output.frames if hasattr(output, "frames") else output.images


def denoiser(pipeline: Any) -> Any:
    """Return the part that is called at every step."""
    return getattr(pipeline, "unet", None) or pipeline.transformer


def after_step(pipeline: Any, number: int, then: Callable[[], object]) -> None:
    """Call `then` once the scheduler has made that many steps."""
    step, made = pipeline.scheduler.step, iter(range(1, 1000))

    @functools.wraps(step)  # pipelines look at what it takes
    def counted(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        if next(made) == number:
            then()
        return output

    pipeline.scheduler.step = counted


def floats(value: Any, dtype: torch.dtype) -> Any:
    """Return a value with its floating tensors in `dtype`."""
    if isinstance(value, dict):
        return {name: floats(inner, dtype) for name, inner in value.items()}
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def cast_on_entry(pipeline: Any) -> None:
    """Have plain parts cast what they are given: what a user would write around a part in another dtype."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        dtype = next(module.parameters()).dtype
        if dtype == FP32:
            return tuple(floats(one, dtype) for one in args), floats(kwargs, dtype)
        values = {
            name: floats(one, dtype) for name, one in kwargs.items() if "states" in name or "projections" in name
        }
        return tuple(floats(one, dtype) for one in args), {**kwargs, **values}

    for module in (
        denoiser(pipeline),
        *(getattr(pipeline.vae, name, None) for name in ("decoder", "post_quant_conv")),
    ):
        if module is not None:
            module.register_forward_pre_hook(hook, with_kwargs=True)


def switch_on_entry(pipeline: Any, at: int) -> None:
    """Have the part that denoises, of a plain pipeline, go to float32 as it is called after `at` steps."""
    begun: list[bool] = [] if at else [True]

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not begun:
            return None
        module.to(FP32)
        return tuple(floats(one, FP32) for one in args), floats(kwargs, FP32)

    def to_own(module: nn.Module, args: Any) -> Any:
        return tuple(floats(one, next(module.parameters()).dtype) for one in args)

    denoiser(pipeline).register_forward_pre_hook(hook, with_kwargs=True)
    for name in ("decoder", "post_quant_conv"):
        if getattr(pipeline.vae, name, None) is not None:
            getattr(pipeline.vae, name).register_forward_pre_hook(to_own)
    if at:
        after_step(pipeline, at, lambda: begun.append(True))


# Healthy


def overflowing(folder: Path, to: Path) -> Path:
    """Save the pipeline once more, with an autoencoder that leaves float16's range inside, and is well in float32.

    As that of SDXL: activations are large, and a norm behind them makes them small again.
    """
    pipeline = plainly(folder, FP32)
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight.mul_(1e5)
        pipeline.vae.decoder.conv_in.bias.mul_(1e5)
    pipeline.vae.register_to_config(force_upcast=False)
    pipeline.save_pretrained(to)
    return to
