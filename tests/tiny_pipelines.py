"""Pipelines of diffusers with all of their parts, made small, seeded, and saved as on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers as tf

_TEXT = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}


def clip_tokenizer(folder: Path) -> Any:
    """Return a tokenizer of single letters, with the two marks of CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return tf.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def clip_text(*, projects: bool = False, **sizes: Any) -> Any:
    """Return a text encoder of CLIP, with a projection if asked."""
    options = {"vocab_size": 54, "max_position_embeddings": 16, "projection_dim": 32, "bos_token_id": 0}
    config = tf.CLIPTextConfig(**_TEXT, **options, eos_token_id=1, pad_token_id=1, **sizes)
    return tf.CLIPTextModelWithProjection(config) if projects else tf.CLIPTextModel(config)


def t5(width: int = 32) -> Any:
    """Return an encoder of T5, for the tokenizer of bytes."""
    sizes = {"d_model": width, "d_ff": 37, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    return tf.T5EncoderModel(tf.T5Config(vocab_size=384, **sizes))


def unet(**options: Any) -> Any:
    """Return a UNet with cross attention."""
    sizes: dict[str, Any] = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32, "attention_head_dim": 2,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**sizes | options)


def vae(**options: Any) -> Any:
    """Return an autoencoder with a factor of 2 between picture and latents."""
    sizes: dict[str, Any] = {
        "block_out_channels": (8, 16), "in_channels": 3, "out_channels": 3, "latent_channels": 4, "sample_size": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
    }  # fmt: skip
    return diffusers.AutoencoderKL(**sizes | options)


def flow() -> Any:
    """Return the scheduler of flow matching."""
    return diffusers.FlowMatchEulerDiscreteScheduler()


def stable_diffusion(folder: Path) -> Any:
    """Return Stable Diffusion 1."""
    return diffusers.StableDiffusionPipeline(
        vae(), clip_text(), clip_tokenizer(folder), unet(), diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(folder: Path) -> Any:
    """Return Stable Diffusion XL, whose scheduler draws random numbers at every step."""
    inner = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 64}
    whole = unet(
        **inner,
        projection_class_embeddings_input_dim=80,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
    )
    scheduler = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="leading", steps_offset=1)
    tokenizer = clip_tokenizer(folder)
    return diffusers.StableDiffusionXLPipeline(
        vae(), clip_text(hidden_act="gelu"), clip_text(projects=True, hidden_act="gelu"), tokenizer, tokenizer, whole,
        scheduler,
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> Any:
    """Return Stable Diffusion 3, with three text encoders."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    tokenizer = clip_tokenizer(folder)
    return diffusers.StableDiffusion3Pipeline(
        transformer, flow(), vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        clip_text(projects=True), tokenizer, clip_text(projects=True), tokenizer, t5(), tf.ByT5Tokenizer(),
    )  # fmt: skip


def flux(folder: Path) -> Any:
    """Return Flux."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        flow(), vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False), clip_text(),
        clip_tokenizer(folder), t5(), tf.ByT5Tokenizer(), transformer,
    )  # fmt: skip


def qwen_tokenizer() -> Any:
    """Return the tokenizer of the bundled model, with a template for its prompts."""
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(__file__).resolve().parents[1] / "examples" / "tiny-qwen3")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def hunyuan_video(folder: Path) -> Any:
    """Return HunyuanVideo 1.5."""
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=32, text_embed_2_dim=32, image_embed_dim=16,
        rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1
    )
    tokenizer = qwen_tokenizer()
    config = tf.Qwen2_5_VLTextConfig(
        **_TEXT, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    )  # fmt: skip
    encoder = tf.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLTextModel(config)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0)
    return diffusers.HunyuanVideo15Pipeline(
        encoder, tokenizer, transformer, autoencoder, flow(), t5(), tf.ByT5Tokenizer(), guider
    )


MAKERS: dict[str, Callable[[Path], Any]] = {
    "StableDiffusion": stable_diffusion,
    "SDXL": stable_diffusion_xl,
    "SD3": stable_diffusion_3,
    "Flux": flux,
    "HunyuanVideo15": hunyuan_video,
}


def save_pipeline(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save the pipeline of that name, its weights in `dtype`, and return its folder."""
    torch.manual_seed(0)
    pipeline = MAKERS[name](folder / "tokenizer_files")
    pipeline.to(dtype)
    pipeline.save_pretrained(folder / name)
    return folder / name


def call_of(name: str) -> dict[str, Any]:
    """Return the arguments of a short run, without a generator."""
    if name == "HunyuanVideo15":
        return {"prompt": 'a "cat"', "height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 3,
                "output_type": "pt"}  # fmt: skip
    call = {"prompt": "a cat", "height": 16, "width": 16, "num_inference_steps": 3, "output_type": "pt"}
    return (
        call
        if name == "StableDiffusion"
        else {**call, **({"max_sequence_length": 16} if name in ("Flux", "SD3") else {})}
    )
