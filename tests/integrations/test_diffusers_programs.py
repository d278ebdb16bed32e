"""diffusers, for real: what programs do with a pipeline after it is loaded, against plain diffusers bit for bit."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_runs import BF16, FP16, FP32, denoiser, events, pictures, plainly, safely, switch_on_entry
from torch import nn

from safe_dtype import BFLOAT16
from safe_dtype.testing import fault

pytestmark = [
    pytest.mark.needs("diffusers"),
    pytest.mark.filterwarnings("default"),  # those of diffusers are no business of ours
]

Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(saved_pipeline: Saved) -> Saved:
    """Return what saves a pipeline of that name, its weights in bfloat16, once."""
    return saved_pipeline


def both(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the pipeline, planned and plain."""
    return safely(folder, dtype=dtype), plainly(folder, dtype)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("name", ["StableDiffusion", "Flux"])
def test_saved_and_loaded_again(saved: Saved, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """What `save_pretrained` writes are the same weights, of which plain diffusers and we make the same pictures."""
    pipeline = safely(saved(name), dtype=dtype)
    pictures(pipeline)
    pipeline.save_pretrained(tmp_path)
    again, plain = both(tmp_path, dtype)
    assert torch.equal(pictures(again), pictures(plain))
    pairs = zip(denoiser(plain).parameters(), denoiser(plainly(saved(name), dtype)).parameters(), strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)


def test_saved_after_a_step_down(saved: Saved, tmp_path: Path) -> None:
    """After a failure the same weights are written, to the bit."""
    pipeline = safely(saved("StableDiffusion"), dtype=BF16)
    with fault(pipeline.unet, "conv_out", "nan", dtype=BFLOAT16):
        pictures(pipeline)
    pipeline.save_pretrained(tmp_path)
    pairs = zip(plainly(tmp_path, BF16).unet.parameters(), plainly(saved("StableDiffusion"), BF16).unet.parameters(),
                strict=True)  # fmt: skip
    assert all(torch.equal(mine, plain) for mine, plain in pairs)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("name", ["StableDiffusion", "SDXL", "SD3", "Flux"])
def test_from_picture_to_picture(saved: Saved, name: str, dtype: torch.dtype) -> None:
    """A pipeline that `from_pipe` makes of another one makes the pictures of plain diffusers."""
    from diffusers import AutoPipelineForImage2Image
    from tiny_pipelines import call_of

    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    call = {**call_of(name), "num_inference_steps": 4, "strength": 0.8}
    if name != "Flux":
        call = {key: value for key, value in call.items() if key not in ("height", "width")}
    made = []
    for one in both(saved(name), dtype):
        pipeline = AutoPipelineForImage2Image.from_pipe(one, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline(image=picture, generator=torch.Generator().manual_seed(0), **call).images)
    assert torch.equal(*made)


@pytest.mark.parametrize(
    "scheduler", ["EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep", "LCM", "DDIM", "HeunDiscrete"]
)
def test_other_schedulers(saved: Saved, scheduler: str) -> None:
    """With another scheduler, one that calls the model twice a step too, a failure is mended at that very step."""
    import diffusers

    kind = getattr(diffusers, f"{scheduler}Scheduler")
    pipeline, plain = both(saved("StableDiffusion"), BF16)
    for one in (pipeline, plain):
        one.scheduler = kind.from_config(one.scheduler.config)
    assert torch.equal(pictures(pipeline), pictures(plain))
    with fault(pipeline.unet, "conv_out", "nan", dtype=BFLOAT16):
        mended = pictures(pipeline)
    switch_on_entry(plain, 0)
    assert torch.equal(mended, pictures(plain))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("name", ["StableDiffusion", "Flux"])
def test_lora(saved: Saved, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Adapters are loaded, fused, taken apart and unloaded as in plain diffusers."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    trained = plainly(saved(name), FP32)
    torch.manual_seed(3)
    denoiser(trained).add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = "unet_lora_layers" if name == "StableDiffusion" else "transformer_lora_layers"
    type(trained).save_lora_weights(tmp_path, **{layers: get_peft_model_state_dict(denoiser(trained))})
    made: list[list[torch.Tensor]] = []
    for one in both(saved(name), dtype):
        series = [pictures(one)]
        for change, arguments in (("load_lora_weights", (tmp_path,)), ("fuse_lora", ()), ("unfuse_lora", ()),
                                  ("unload_lora_weights", ())):  # fmt: skip
            getattr(one, change)(*arguments)
            series.append(pictures(one))
        made.append(series)
    assert not torch.equal(made[0][0], made[0][1])
    assert all(torch.equal(mine, plain) for mine, plain in zip(*made, strict=True))


def test_failing_with_an_adapter(saved: Saved) -> None:
    """A part with an adapter is mended as one without."""
    from peft import LoraConfig

    pipeline = safely(saved("StableDiffusion"), dtype=BF16)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    with fault(pipeline.unet, "conv_out", "nan", dtype=BFLOAT16):
        assert pictures(pipeline).isfinite().all()
    assert set(events(pipeline)) == {"unet"}


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_tiles_and_slices(saved: Saved, dtype: torch.dtype) -> None:
    """Tiles and slices of the autoencoder, slices of attention and fused projections are those of plain diffusers."""
    made = []
    for one in both(saved("StableDiffusion"), dtype):
        one.vae.enable_tiling()
        one.vae.tile_latent_min_size = one.vae.tile_sample_min_size = 4
        one.vae.enable_slicing()
        one.enable_attention_slicing()
        series = [pictures(one, num_images_per_prompt=2)]
        one.fuse_qkv_projections()
        series.append(pictures(one))
        one.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        made.append([*series, pictures(one)])
    assert all(torch.equal(mine, plain) for mine, plain in zip(*made, strict=True))


def test_two_threads(saved: Saved) -> None:
    """Two pipelines around the same models, each in its thread, make the pictures of plain diffusers; failing, whole ones."""
    pipeline, plain = both(saved("StableDiffusion"), BF16)

    def in_threads(one: Any, count: int) -> list[torch.Tensor]:
        made: list[torch.Tensor] = []

        def run() -> None:
            own = type(one)(**{**one.components, "scheduler": copy.deepcopy(one.scheduler)})
            made.extend(pictures(own) for _ in range(3))

        threads = [threading.Thread(target=run) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return made

    wanted = in_threads(plain, 1)[0]  # another thread may share its products between other numbers of threads
    healthy = in_threads(pipeline, 2)
    assert len(healthy) == 6
    assert all(torch.equal(picture, wanted) for picture in healthy)
    with fault(pipeline.unet, "conv_out", "nan", dtype=BFLOAT16):
        mended = in_threads(pipeline, 2)
    assert len(mended) == 6
    assert all(picture.isfinite().all() for picture in mended)


# Plans and parts


def test_plans_of_copies(saved: Saved) -> None:
    """A copy of a pipeline has its plan, and so has one that is made of its models; of other models it says so."""
    from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline
    from safe_dtype.integrations.diffusers import plan_of_pipeline

    pipeline = safely(saved("StableDiffusion"), dtype=BF16)
    plan = plan_of_pipeline(pipeline)
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipeline, dtype=BF16)
    for one in (copy.deepcopy(pipeline), other, StableDiffusionImg2ImgPipeline(**pipeline.components)):
        again = plan_of_pipeline(one)
        assert (again.plans, again.pipeline, again.unplanned) == (plan.plans, type(one).__name__, ())
    other.vae = AutoencoderKL.from_pretrained(saved("StableDiffusion") / "vae", torch_dtype=BF16)
    assert plan_of_pipeline(other).unplanned == (("vae", "it was not loaded by safe_dtype"),)
    assert set(plan_of_pipeline(other).plans) == {"unet", "text_encoder"}


def test_registered_modules(saved: Saved) -> None:
    """Modules that a program registers beside the parts of the class are no obstacle."""
    from safe_dtype.integrations.diffusers import plan_of_pipeline, reports_of

    pipeline = safely(saved("StableDiffusion"), dtype=BF16)
    pipeline.register_modules(judge=nn.Linear(2, 2))
    assert set(reports_of(pipeline)) == {"unet", "vae", "text_encoder"}
    assert dict(plan_of_pipeline(pipeline).unplanned) == {"judge": "it was not loaded by safe_dtype"}


def test_one_model_in_many_pipelines(saved: Saved) -> None:
    """A model that is passed to one pipeline after the other is cast for by one hook, and keeps none of them alive."""
    from diffusers import AutoencoderKL

    own = AutoencoderKL.from_pretrained(saved("StableDiffusion") / "vae", torch_dtype=BF16)
    unets = [weakref.ref(safely(saved("StableDiffusion"), dtype=BF16, vae=own).unet) for _ in range(4)]
    gc.collect()
    assert all(unet() is None for unet in unets)
    last = safely(saved("StableDiffusion"), dtype=FP32, vae=own)
    for module in (own.decoder, own.encoder, own.post_quant_conv, own.quant_conv):
        assert len(module._forward_pre_hooks) == 1
    first = safely(saved("StableDiffusion"), dtype=BF16, vae=own)
    assert torch.equal(pictures(first), pictures(plainly(saved("StableDiffusion"), BF16)))
    assert pictures(last).isfinite().all()
    assert (events(first), events(last)) == ({}, {})
