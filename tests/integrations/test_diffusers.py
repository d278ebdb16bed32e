"""diffusers, for real: pipelines with all of their parts, healthy and failing, against plain diffusers bit for bit."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_runs import (
    BF16,
    ENDS,
    FP16,
    FP32,
    NAMES,
    after_step,
    cast_on_entry,
    denoiser,
    events,
    floats,
    overflowing,
    pictures,
    plainly,
    safely,
    switch_on_entry,
)
from torch import nn

import safe_dtype
from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, plan_of, report
from safe_dtype.errors import CheckpointError, NoPlanError, StrictModeError
from safe_dtype.testing import fault

pytestmark = [
    pytest.mark.needs("diffusers"),
    pytest.mark.filterwarnings("default"),  # those of diffusers are no business of ours
]


@pytest.fixture(scope="module")
def saved(saved_pipeline: Callable[..., Path]) -> Callable[..., Path]:
    """Return what saves a pipeline of that name, its weights in bfloat16, once."""
    return saved_pipeline


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_healthy(saved: Callable[..., Path], name: str, dtype: torch.dtype) -> None:
    """In an ordered dtype a pipeline that is well makes the pictures of plain diffusers, bit for bit."""
    pipeline = safely(saved(name), dtype=dtype)
    assert denoiser(pipeline).dtype == dtype
    assert torch.equal(pictures(pipeline), pictures(plainly(saved(name), dtype)))
    assert events(pipeline) == {}


def test_without_an_order(saved: Callable[..., Path]) -> None:
    """Every part has a plan, of which one text tells; weights are never rounded unasked."""
    from safe_dtype.integrations.diffusers import PipelinePlan, plan_of_pipeline

    for dtype in (BF16, FP32):
        pipeline = safely(saved("SDXL", dtype))
        plan = plan_of_pipeline(pipeline)
        assert isinstance(plan, PipelinePlan)
        assert set(plan.plans) == {"unet", "vae", "text_encoder", "text_encoder_2"}
        for name, part in plan.plans.items():
            model = getattr(pipeline, name)
            assert plan_of(model) == part
            assert str(model.dtype) == f"torch.{part.storage}"
            assert part.storage in ((BFLOAT16, FLOAT32) if dtype == BF16 else (FLOAT32,))
            assert name in plan.explain()
    assert plan.summary.startswith(f"{saved('SDXL', FP32)}: text_encoder, text_encoder_2, unet, vae in float32")
    with pytest.raises(NoPlanError):
        plan_of_pipeline(plainly(saved("SDXL"), BF16))


def test_order_for_each_part(saved: Callable[..., Path]) -> None:
    """A dict of dtypes is an order for each part; what one hands to another is cast on entry, and that is no event."""
    orders = {"text_encoder": FP32, "transformer": BF16, "default": FP16}
    folder = saved("Flux")
    pipeline = safely(folder, dtype=orders)
    parts = {name: part.dtype for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    assert parts == {"text_encoder": FP32, "transformer": BF16, "text_encoder_2": FP16, "vae": FP16}
    plain = plainly(folder, orders)
    cast_on_entry(plain)
    assert torch.equal(pictures(pipeline), pictures(plain))
    assert events(pipeline) == {}


def test_torch_dtype(saved: Callable[..., Path]) -> None:
    """The older name of the argument is an order as well."""
    assert denoiser(safely(saved("StableDiffusion"), torch_dtype=FP16)).dtype == FP16


# Failing


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_step_that_fails(saved: Callable[..., Path], name: str, at: int) -> None:
    """It goes on in float32 from that very step: the pictures are those of a run that is switched there by hand."""
    pipeline = safely(saved(name), dtype=BF16)
    model, module = denoiser(pipeline), ENDS.get(name, "proj_out")
    with ExitStack() as stack:
        begin = lambda: stack.enter_context(fault(model, module, "nan", dtype=BFLOAT16))  # noqa: E731
        after_step(pipeline, at, begin) if at else begin()
        mended = pictures(pipeline)
    assert [(e.before, e.after, e.module) for e in report(model).events] == [(BFLOAT16, FLOAT32, module)]
    assert set(events(pipeline)) == {"unet" if hasattr(pipeline, "unet") else "transformer"}
    plain = plainly(saved(name), BF16)
    switch_on_entry(plain, at)
    assert torch.equal(mended, pictures(plain))


@pytest.mark.parametrize("kind", ["nan", "not_implemented"])
@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_every_part_of_hunyuan_video(saved: Callable[..., Path], part: str, kind: str) -> None:
    """HunyuanVideo 1.5 survives a fault in each of its parts."""
    pipeline = safely(saved("HunyuanVideo15"), dtype=BF16)
    model = getattr(pipeline, part)
    leaves = {"text_encoder": "layers.0.mlp.down_proj", "text_encoder_2": "encoder.block.1.layer.1.DenseReluDense.wo",
              "transformer": "proj_out", "vae": "decoder.conv_out"}  # fmt: skip
    with fault(model, leaves[part], kind, dtype=BFLOAT16):
        video = pictures(pipeline)
    assert video.isfinite().all()
    assert set(events(pipeline)) == {part}


@pytest.mark.parametrize("tiling", [False, True])
@pytest.mark.parametrize("name", ["StableDiffusion", "SDXL", "Flux"])
def test_autoencoder_that_overflows(saved: Callable[..., Path], tmp_path: Path, name: str, tiling: bool) -> None:
    """It decodes the same latents again in float32, and stays there; no other part is touched."""
    folder = overflowing(saved(name), tmp_path / "overflowing")
    plain = plainly(folder, FP16)
    assert not pictures(plain).isfinite().all()
    pipeline = safely(folder, dtype=FP16)
    if tiling:
        pipeline.vae.enable_tiling()
        pipeline.vae.tile_latent_min_size = pipeline.vae.tile_sample_min_size = 4
    mended = pictures(pipeline)
    assert set(events(pipeline)) == {"vae"}
    assert pipeline.vae.dtype == FP32
    assert denoiser(pipeline).dtype == FP16
    plain.vae = plainly(folder, FP32).vae
    if tiling:
        plain.vae.enable_tiling()
        plain.vae.tile_latent_min_size = plain.vae.tile_sample_min_size = 4
    cast_on_entry(plain)
    assert torch.equal(mended, pictures(plain))
    assert mended.isfinite().all()
    again = pictures(pipeline)
    assert len(report(pipeline.vae).events) == 1
    assert torch.equal(again, mended)


def test_text_encoder_that_overflows(saved: Callable[..., Path], tmp_path: Path) -> None:
    """One that leaves float16's range inside is rescaled as it is loaded, and the picture is that of float32."""
    plain = plainly(saved("Flux"), FP32)
    with torch.no_grad():
        for block in plain.text_encoder_2.encoder.block:
            block.layer[-1].DenseReluDense.wi.weight.mul_(1e5)
            block.layer[-1].DenseReluDense.wo.weight.mul_(10)
    plain.to(BF16).save_pretrained(tmp_path)
    assert not pictures(plainly(tmp_path, FP16)).isfinite().all()
    pipeline = safely(tmp_path, dtype=FP16)
    assert pipeline.text_encoder_2.dtype == FP16  # though its sensitive products are not
    torch.testing.assert_close(pictures(pipeline).float(), pictures(plainly(tmp_path, FP32)), rtol=0, atol=0.01)
    assert events(pipeline) == {}


def test_strict(saved: Callable[..., Path]) -> None:
    """In strict mode a step that fails is an error, and nothing is changed."""
    pipeline = safely(saved("StableDiffusion"), dtype=BF16, policy="strict")
    with fault(pipeline.unet, "conv_out", "nan", dtype=BFLOAT16), pytest.raises(StrictModeError):
        pictures(pipeline)
    assert pipeline.unet.dtype == BF16


# What people do with pipelines


def test_callbacks(saved: Callable[..., Path]) -> None:
    """`callback_on_step_end` is called once a step, failing or not, and what it returns counts."""
    pipeline, seen = safely(saved("SDXL"), dtype=BF16), []

    def callback(_: Any, index: int, __: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((index, given["latents"].isfinite().all().item()))
        return {"latents": given["latents"] * 0.5}

    with fault(pipeline.unet, "conv_out", "nan", dtype=BFLOAT16):
        mended = pictures(pipeline, callback_on_step_end=callback)
    assert seen == [(0, True), (1, True), (2, True)]
    plain = plainly(saved("SDXL"), BF16)
    switch_on_entry(plain, 0)
    assert torch.equal(mended, pictures(plain, callback_on_step_end=callback))


def test_moved_to_another_dtype(saved: Callable[..., Path]) -> None:
    """After `pipeline.to(dtype)` it runs in that dtype as plain diffusers would, and is guarded there."""
    pipeline, plain = safely(saved("Flux"), dtype=BF16), plainly(saved("Flux"), BF16)
    for one in (pipeline, plain):
        one.to(FP16)
    assert torch.equal(pictures(pipeline), pictures(plain))
    assert events(pipeline) == {}
    with fault(pipeline.transformer, "proj_out", "nan", dtype=FLOAT16):
        assert pictures(pipeline).isfinite().all()
    assert pipeline.transformer.dtype in (BF16, FP32)


def test_pipeline_that_upcasts_itself(saved: Callable[..., Path]) -> None:
    """SDXL casts its autoencoder to float32 and back where the config says so: its own affair."""
    pipeline, plain = safely(saved("SDXL"), dtype=FP16), plainly(saved("SDXL"), FP16)
    assert pipeline.vae.config.force_upcast
    for _ in range(2):
        assert torch.equal(pictures(pipeline), pictures(plain))
    assert events(pipeline) == {}


def test_offloaded(saved: Callable[..., Path]) -> None:
    """Parts with the hooks of `enable_model_cpu_offload` are guarded as without."""
    from accelerate import cpu_offload_with_hook

    pipeline, plain = safely(saved("SD3"), dtype=BF16), plainly(saved("SD3"), BF16)
    for part in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        cpu_offload_with_hook(part, "cpu")
    assert torch.equal(pictures(pipeline), pictures(plain))
    with fault(pipeline.vae, "decoder.conv_out", "nan", dtype=BFLOAT16):
        mended = pictures(pipeline)
    plain.vae.to(FP32)
    plain.vae.decoder.register_forward_pre_hook(lambda _, args: tuple(floats(one, FP32) for one in args))
    assert torch.equal(mended, pictures(plain))


def test_passed_parts(saved: Callable[..., Path]) -> None:
    """A model that is passed stays as it is, and is guarded; None leaves a part out."""
    from diffusers import AutoencoderKL

    own = AutoencoderKL.from_pretrained(saved("SD3") / "vae", torch_dtype=BF16)
    pipeline = safely(saved("SD3"), dtype=BF16, vae=own, text_encoder_3=None)
    assert pipeline.vae is own
    assert pipeline.text_encoder_3 is None
    with fault(own, "decoder.conv_out", "nan", dtype=BFLOAT16):
        assert pictures(pipeline).isfinite().all()
    assert set(events(pipeline)) == {"vae"}


def test_other_pipeline_of_the_same_parts(saved: Callable[..., Path]) -> None:
    """`pipeline_class` names another pipeline: from picture to picture, where the autoencoder encodes, too."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = safely(saved("StableDiffusion"), dtype=BF16, pipeline_class=StableDiffusionImg2ImgPipeline)
    assert type(pipeline) is StableDiffusionImg2ImgPipeline
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pipeline.set_progress_bar_config(disable=True)
    with fault(pipeline.vae, "encoder.conv_out", "nan", dtype=BFLOAT16):
        made = pipeline("a cat", picture, num_inference_steps=4, output_type="pt", generator=torch.Generator()).images
    assert made.isfinite().all()
    assert set(events(pipeline)) == {"vae"}


def test_quantized_part(saved: Callable[..., Path], tmp_path: Path) -> None:
    """A part whose config says that it is quantized has no plan, and the plan of the pipeline says why."""
    from safe_dtype.loading.diffusion.load_part import plan_diffusers_model
    from safe_dtype.loading.request import Request

    folder = shutil.copytree(saved("SD3") / "transformer", tmp_path / "transformer")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="it is quantized"):
        plan_diffusers_model(Request(folder, {}), None)


def test_copied_and_compiled(saved: Callable[..., Path]) -> None:
    """A deep copy of a part is guarded on its own; a compiled part is compiled in one piece."""
    pipeline = safely(saved("Flux"), dtype=BF16)
    wanted = pictures(pipeline)
    pipeline.transformer = copy.deepcopy(pipeline.transformer)
    assert torch.equal(pictures(pipeline), wanted)
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager", fullgraph=True)
    assert torch.equal(pictures(pipeline), wanted)
    torch.compiler.reset()


def test_copied_pipeline(saved: Callable[..., Path]) -> None:
    """Parts of a deep copy in several dtypes hand their values on as those of the pipeline would: no event."""
    pipeline = safely(saved("Flux"), dtype=BF16)
    copied = copy.deepcopy(pipeline)
    for one in (pipeline, copied):
        one.vae.to(FP32)
    wanted = pictures(pipeline)
    pipeline.vae.to(BF16)
    assert torch.equal(pictures(copied), wanted)
    assert events(copied) == {}


def test_pickled(saved: Callable[..., Path]) -> None:
    """A part is pickled as a part of plain diffusers is."""
    pipeline = safely(saved("StableDiffusion"), dtype=BF16)
    wanted = pictures(pipeline)
    for name in ("unet", "vae"):
        setattr(pipeline, name, pickle.loads(pickle.dumps(getattr(pipeline, name))))
    assert torch.equal(pictures(pipeline), wanted)


# Patched


@pytest.fixture
def patched() -> Iterator[None]:
    """Patch the process for one test."""
    with safe_dtype.patched(tell="nothing"):
        yield


def test_patched_pipeline(saved: Callable[..., Path], patched: None) -> None:
    """`DiffusionPipeline.from_pretrained` itself plans and guards; an order stays one."""
    from diffusers import AutoPipelineForText2Image, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(saved("Flux"), torch_dtype=FP16)
    assert {part.dtype for part in pipeline.components.values() if isinstance(part, nn.Module)} == {FP16}
    assert {plan_of(part).ordered for part in pipeline.components.values() if isinstance(part, nn.Module)} == {FLOAT16}
    pipeline = AutoPipelineForText2Image.from_pretrained(saved("Flux"))
    with fault(pipeline.transformer, "proj_out", "nan", dtype=plan_of(pipeline.transformer).storage):
        assert pictures(pipeline).isfinite().all() or plan_of(pipeline.transformer).storage == FLOAT32
    assert report(pipeline.transformer).events


def test_patched_model(saved: Callable[..., Path], patched: None) -> None:
    """A single model of diffusers is planned and guarded as well, by its own class or by `AutoModel`."""
    from diffusers import AutoModel, UNet2DConditionModel

    for load in (UNet2DConditionModel.from_pretrained, AutoModel.from_pretrained):
        model = load(str(saved("StableDiffusion")), subfolder="unet", torch_dtype=BF16)
        assert plan_of(model).ordered == BFLOAT16
        given = torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor(3), torch.randn(1, 4, 32).bfloat16()
        with torch.no_grad(), fault(model, "conv_out", "nan", dtype=BFLOAT16):
            assert model(*given).sample.isfinite().all()
        assert [event.after for event in report(model).events] == [FLOAT32]


def test_told_once(saved: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """One line tells of a whole pipeline."""
    with safe_dtype.patched():
        from diffusers import DiffusionPipeline

        DiffusionPipeline.from_pretrained(saved("SD3"), torch_dtype=FP32)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("safe_dtype:")]
    assert len(lines) == 1
    assert "text_encoder, text_encoder_2, text_encoder_3, transformer, vae in float32" in lines[0]


def test_unpatched(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Afterwards diffusers is what it was, and its own errors were its own all the time."""
    from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel

    before = [vars(owner)["from_pretrained"] for owner in (DiffusionPipeline, ModelMixin)]
    errors = []
    for block in (ExitStack(), safe_dtype.patched()):
        with block:
            for load in (DiffusionPipeline.from_pretrained, UNet2DConditionModel.from_pretrained):
                with pytest.raises(Exception) as error:  # noqa: PT011  # whichever it is
                    load(tmp_path)
                errors.append((error.type, str(error.value)))
    assert errors[:2] == errors[2:]
    assert [vars(owner)["from_pretrained"] for owner in (DiffusionPipeline, ModelMixin)] == before


def test_weights_are_read_again(saved: Callable[..., Path]) -> None:
    """A part that was rounded on loading, as ordered, steps down to the weights of its files."""
    pipeline = safely(saved("StableDiffusion", FP32), dtype=BF16)
    with fault(pipeline.unet, "conv_out", "nan", dtype=BFLOAT16):
        pictures(pipeline)
    truth = plainly(saved("StableDiffusion", FP32), FP32).unet
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(pipeline.unet.parameters(), truth.parameters(), strict=True)
    )
