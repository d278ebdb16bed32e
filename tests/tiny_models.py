"""Real classes of transformers, tiny and random, made on the spot from a seed: one a kind of architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class TinyModel:
    """An architecture: its Auto class, how to make one, and inputs for one forward pass."""

    auto_name: str
    make: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]

    def save(self, folder: Path, dtype: torch.dtype, **options: Any) -> Path:
        """Save one with weights in `dtype`; the same weights every time."""
        torch.manual_seed(0)
        model = self.make().eval().to(dtype)
        model.save_pretrained(folder, **options)
        return folder


def _ids(length: int = 7) -> torch.Tensor:
    return torch.arange(3, 3 + length)[None]


def _text() -> dict[str, Any]:
    return {"input_ids": _ids()}


def _qwen3() -> Any:
    return tf.Qwen3ForCausalLM(
        tf.Qwen3Config(**_TEXT, **_TOKENS, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
    )


def _gemma2() -> Any:
    return tf.Gemma2ForCausalLM(
        tf.Gemma2Config(
            **_TEXT, **_TOKENS, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=4
        )
    )


def _t5() -> Any:
    config = tf.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return tf.T5ForConditionalGeneration(config)


def _whisper() -> Any:
    return tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=10,
            max_target_positions=20, decoder_start_token_id=1, **_TOKENS,
        )
    )  # fmt: skip


def _mixtral() -> Any:
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(
            **_TEXT, **_TOKENS, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2
        )
    )


def _mamba() -> Any:
    return tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=96, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4, **_TOKENS)
    )


def _llava() -> Any:
    vision = tf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    text = tf.LlamaConfig(**_TEXT, **_TOKENS, num_key_value_heads=2)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=95, image_seq_length=4)
    )


def _llava_inputs() -> dict[str, Any]:
    ids = torch.tensor([[1, 95, 95, 95, 95, 7, 8]])
    return {"input_ids": ids, "pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)}


def _segformer() -> Any:
    return tf.SegformerForSemanticSegmentation(
        tf.SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
            strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=32, num_labels=3,
        )
    )  # fmt: skip


def _bert() -> Any:
    return tf.BertForMaskedLM(tf.BertConfig(**_TEXT, pad_token_id=0))


TINY: dict[str, TinyModel] = {
    "qwen3": TinyModel("AutoModelForCausalLM", _qwen3, _text),
    "gemma2": TinyModel("AutoModelForCausalLM", _gemma2, _text),
    "t5": TinyModel("AutoModelForSeq2SeqLM", _t5, lambda: {"input_ids": _ids(), "decoder_input_ids": _ids(3)}),
    "whisper": TinyModel(
        "AutoModelForSpeechSeq2Seq", _whisper,
        lambda: {"input_features": torch.linspace(-1, 1, 16 * 20).reshape(1, 16, 20), "decoder_input_ids": _ids(3)},
    ),
    "mixtral": TinyModel("AutoModelForCausalLM", _mixtral, _text),
    "mamba": TinyModel("AutoModelForCausalLM", _mamba, _text),
    "llava": TinyModel("AutoModelForImageTextToText", _llava, _llava_inputs),
    "segformer": TinyModel(
        "AutoModelForSemanticSegmentation", _segformer,
        lambda: {"pixel_values": torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)},
    ),
    "bert": TinyModel("AutoModelForMaskedLM", _bert, _text),
}  # fmt: skip


def tiny_gguf(path: Path, kind: str = "Q8_0") -> Path:
    """Write a Llama of one layer whose matrices are in a format of GGUF, as a GGUF file."""
    import gguf
    import numpy as np

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(96)
    writer.add_rope_dimension_count(8)
    writer.add_tensor("token_embd.weight", random.standard_normal((96, 32)).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_up": (64, 32), "ffn_gate": (64, 32), "ffn_down": (32, 64)}
    quantized = {"output": (96, 32)} | {f"blk.0.{name}": shape for name, shape in shapes.items()}
    for name, shape in quantized.items():
        numbers = random.standard_normal(shape).astype(np.float32)
        blocks = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def readable_gguf(path: Path, kind: str, tokenizer: Path | None) -> Path:
    """Write a Qwen2 whose matrices are in a format of GGUF, with the byte-level tokenizer of a folder where there is one."""
    import json

    import gguf
    import numpy as np

    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**size, num_key_value_heads=2, vocab_size=2048, initializer_range=0.2, tie_word_embeddings=True)
    )
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(2048)
    if tokenizer is not None:
        words = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(words["vocab"], key=words["vocab"].__getitem__))
        writer.add_token_types([1] * 2048)
        writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, tensor in model.named_parameters():
        numbers = tensor.detach().numpy().astype(np.float32)
        written = gguf.GGMLQuantizationType[kind if numbers.ndim > 1 else "F32"]
        blocks = gguf.quants.quantize(numbers, written)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), blocks, raw_dtype=written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def float8(folder: Path, *, block: int = 16, endings: tuple[str, ...] = ("proj.weight",)) -> Path:
    """Quantize the projections of a saved checkpoint to float8, as DeepSeek-V3 and MiniMax-M2 are: blocks with a scale.

    `endings`: of the names of the weights that are quantized.
    """
    import json

    from safetensors.torch import load_file, save_file

    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(endings):
            weights[name] = tensor
            continue
        rows, columns = (side // block for side in tensor.shape)
        blocks = tensor.float().reshape(rows, block, columns, block)
        scales = blocks.abs().amax((1, 3)) / 448
        weights[name] = (blocks / scales[:, None, :, None]).reshape(tensor.shape).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scales
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block],
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def mxfp4(folder: Path) -> Path:
    """Save a tiny gpt-oss whose experts are in MXFP4, as gpt-oss is published: blocks of 32 numbers with a scale."""
    import json

    from safetensors.torch import load_file, save_file

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    config = tf.GptOssConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2, eos_token_id=1, pad_token_id=0,
        **heads, **experts,
    )  # fmt: skip
    tf.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj"):
            weights[name] = tensor
            continue
        count, rows, columns = tensor.shape
        weights[f"{name}_blocks"] = torch.randint(0, 256, (count, columns, rows // 32, 16), dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.full((count, columns, rows // 32), 120, dtype=torch.uint8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    table = json.loads((folder / "config.json").read_text())
    rest = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    table["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": rest}
    (folder / "config.json").write_text(json.dumps(table))
    return folder
