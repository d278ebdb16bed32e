"""Random models of transformers that overflow in float16 as trained ones do: bf16 weights, and a few huge activations.

Trained transformers carry massive activations (Sun et al., arXiv 2402.17762): on the first token and on delimiters a few
channels are thousands of times larger than the rest, written there by units of an MLP whose gate and up projection look
for the same direction, so that they square it (arXiv 2603.05498). A random model has none, and they are built in here:
`_trigger` finds the direction that tells trigger tokens from all others, and `_amplify` makes a unit of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers as tf
from torch import Tensor, nn

Size = Literal["tiny", "small"]
Where = Literal["residual", "interior", "scores"]

PAD, BOS, EOS = 0, 1, 2
_TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_DELIMITERS = range(3, 11)  # with BOS, and PAD where a decoder starts with it, the trigger tokens
_ORDINARY = _DELIMITERS.stop  # the first of the tokens that trigger nothing
_DELIMITER_SHARE = 0.08
_LOGIT_STD = 3.5  # peaky, as a trained model's


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that all families share."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_window: int

    def of(self, *names: str, **renamed: str) -> dict[str, int]:
        """Return the sizes called `names`, and those of `renamed` (their name in the config: ours)."""
        return {theirs: getattr(self, ours) for theirs, ours in {**{name: name for name in names}, **renamed}.items()}


SHAPES: dict[Size, Shape] = {
    "tiny": Shape(320, 96, 192, 4, 4, 2, 24, 16),
    "small": Shape(2048, 384, 768, 6, 6, 2, 64, 32),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How one family is made, where it overflows, and what `from_pretrained` needs to see that."""

    config: Callable[[Shape], Any]
    engineer: Callable[[Any], None]
    where: Where  # a layer's output, an MLP's inside, or q.k before it is scaled
    embedding_std: float = 0.3
    auto: Any = tf.AutoModelForCausalLM
    attn_implementation: str | None = None


# Configs

_LLAMA = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


def _qwen3(shape: Shape) -> Any:
    return tf.Qwen3Config(**shape.of(*_LLAMA, "head_dim"), **_TOKENS, tie_word_embeddings=True)


def _qwen2(shape: Shape) -> Any:
    return tf.Qwen2Config(**shape.of(*_LLAMA), **_TOKENS, tie_word_embeddings=False)


def _llama(shape: Shape) -> Any:
    return tf.LlamaConfig(**shape.of(*_LLAMA, "head_dim"), **_TOKENS, tie_word_embeddings=False)


def _phi3(shape: Shape) -> Any:
    return tf.Phi3Config(**shape.of(*_LLAMA), **_TOKENS, tie_word_embeddings=False)


def _gemma2(shape: Shape) -> Any:
    sizes = shape.of(*_LLAMA, "head_dim", "sliding_window", query_pre_attn_scalar="head_dim")
    return tf.Gemma2Config(**sizes, **_TOKENS)


def _gemma3(shape: Shape) -> Any:
    sizes = shape.of(*_LLAMA, "head_dim", "sliding_window", query_pre_attn_scalar="head_dim")
    # Its own pattern, five sliding layers and a full one, has no full one in four layers.
    kinds = ["sliding_attention", "full_attention"] * (shape.num_hidden_layers // 2)
    return tf.Gemma3TextConfig(**sizes, **_TOKENS, layer_types=kinds)


def _gpt_oss(shape: Shape) -> Any:
    sizes = shape.of(*_LLAMA, "head_dim", "sliding_window")
    return tf.GptOssConfig(**sizes, **_TOKENS, num_local_experts=4, num_experts_per_tok=2)


def _t5(shape: Shape) -> Any:
    sizes = shape.of(
        "vocab_size", d_model="hidden_size", d_ff="intermediate_size", d_kv="head_dim", num_layers="num_hidden_layers",
        num_decoder_layers="num_hidden_layers", num_heads="num_attention_heads",
    )  # fmt: skip
    return tf.T5Config(**sizes, **_TOKENS, feed_forward_proj="gated-gelu", decoder_start_token_id=PAD)


def _opt(shape: Shape) -> Any:
    sizes = shape.of(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", ffn_dim="intermediate_size",
        word_embed_proj_dim="hidden_size",
    )  # fmt: skip
    # With OPT's own ReLU fc1 could be scaled down and fc2 up; through a GELU no scale passes.
    return tf.OPTConfig(**sizes, **_TOKENS, activation_function="gelu", max_position_embeddings=256)


# Random weights and inputs


def _randomize(model: nn.Module, embedding_std: float, generator: torch.Generator) -> None:
    """Overwrite every parameter: a matrix about keeps the scale of its input, and no gain or bias is trivial."""
    gemma = "Gemma" in type(model).__name__  # its norms multiply by 1 + weight
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=generator.device)
        if "embed" in name or "shared" in name:
            noise *= embedding_std
        elif parameter.dim() == 3:  # fused experts, (experts, in, out)
            noise *= 0.7 / math.sqrt(parameter.shape[1])
        elif "relative_attention_bias" in name:
            noise *= 0.3
        elif parameter.dim() == 2:
            noise *= (1.0 if "q_proj" in name or "k_proj" in name else 0.8) / math.sqrt(parameter.shape[1])
        elif "norm" in name and name.endswith("weight"):
            noise = 0.3 * noise if gemma else (1 + 0.25 * noise).abs()
        else:
            noise *= 0.1 if name.endswith("bias") else 0.3  # of the rest: the sinks of gpt-oss
        if name.endswith("Attention.q.weight"):
            noise *= 0.12  # T5 divides its scores by nothing
        parameter.copy_(noise)


def _tell_apart(embedding: nn.Embedding, embedding_std: float, generator: torch.Generator) -> None:
    """Give ordinary tokens one common direction and trigger tokens another; trained embeddings are no ball either."""
    directions = torch.randn(2, embedding.weight.shape[1], generator=generator, device=generator.device)
    ordinary, trigger = embedding_std * directions
    embedding.weight[_ORDINARY:] += 0.5 * ordinary
    triggers = [PAD, BOS, *_DELIMITERS]
    embedding.weight[triggers] = 0.5 * embedding.weight[triggers] + 1.5 * trigger


def _ids(first: int, length: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    ordinary = torch.randint(_ORDINARY, vocab_size, (1, length), generator=generator)
    delimiters = torch.randint(_DELIMITERS.start, _DELIMITERS.stop, (1, length), generator=generator)
    ids = torch.where(torch.rand(1, length, generator=generator) < _DELIMITER_SHARE, delimiters, ordinary)
    ids[:, 0] = first
    return ids


def prompts(
    family: str, *, count: int, tokens: int, seed: int, vocab_size: int = 320
) -> tuple[dict[str, Tensor], ...]:
    """Return `count` inputs of shape (1, tokens): BOS, then ordinary tokens with some delimiters between them.

    T5 gets `decoder_input_ids` of shape (1, tokens // 2) too, which start with PAD. Every size knows the first 320 tokens.
    """
    generator = torch.Generator().manual_seed(seed)

    def one() -> dict[str, Tensor]:
        found = {"input_ids": _ids(BOS, tokens, vocab_size, generator)}
        if KINDS[family].auto is tf.AutoModelForSeq2SeqLM:
            found["decoder_input_ids"] = _ids(PAD, tokens // 2, vocab_size, generator)
        return found

    return tuple(one() for _ in range(count))


def _calibration(model: Any) -> dict[str, Tensor]:
    """Return a batch of 24 prompts over the whole vocabulary."""
    family = "t5" if model.config.is_encoder_decoder else "llama"
    rows = prompts(family, count=24, tokens=48, seed=77, vocab_size=model.config.vocab_size)
    return {name: torch.cat([row[name] for row in rows]).to(model.device) for name in rows[0]}


# Amplifiers


def _trigger(model: Any, module: nn.Module, *, side: str = "input_ids") -> Tensor:
    """Return d of shape (hidden,): for an input x of `module`, d.x is about 1 on trigger tokens and -0.8 on others.

    Far below zero, because there a gate is shut, so that a token which only comes near the direction writes nothing:
    else it would write a hundredth of 3e5, and its own bits would drown in that.
    """
    batch, seen = _calibration(model), []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    model(**batch)
    hook.remove()
    x, fires = seen[0], batch[side].flatten() < _ORDINARY
    # Least squares in which triggers, a tenth of the tokens, weigh as much as the rest.
    weighted = (x / torch.where(fires, fires.sum(), (~fires).sum())[:, None]).T
    ridge = 1e-3 * x.square().mean() * torch.eye(x.shape[1], device=x.device)
    direction = torch.linalg.solve(weighted @ x + ridge, weighted @ torch.where(fires, 1.0, -0.8))
    return direction / (x[fires] @ direction).mean()


def _gated(layer: Any) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a layer's MLP with its gate and up (units, hidden) and its down projection (hidden, units)."""
    if hasattr(layer, "layer"):  # T5
        mlp = layer.layer[-1].DenseReluDense
        return mlp, mlp.wi_0.weight, mlp.wi_1.weight, mlp.wo.weight
    if hasattr(layer.mlp, "gate_up_proj"):  # Phi-3
        return layer.mlp, *layer.mlp.gate_up_proj.weight.chunk(2), layer.mlp.down_proj.weight
    return layer.mlp, layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight


def _amplify(model: Any, layer: Any, writes: dict[int, float], *, gain: float = 60.0, side: str = "input_ids") -> None:
    """Make one unit of a gated MLP give gain**2 on trigger tokens, and write `writes` (channel: value) for them."""
    mlp, gate, up, down = _gated(layer)
    gate[3] = up[3] = gain * _trigger(model, mlp, side=side)
    down[:, 3] = 0
    for channel, value in writes.items():
        down[channel, 3] = value / gain**2


def _pre_norm(model: Any) -> None:
    layers = model.model.layers
    _amplify(model, layers[1], {7: 2.2e5, 61: -1.0e5})
    _amplify(model, layers[-2], {7: 1.5e5})


def _sandwich(model: Any) -> None:
    """Engineer a Gemma: an MLP's output is normalized, so that only the gain of the norm after it can make it huge."""
    layers = model.model.layers
    for depth, layer in enumerate(layers):
        # The stream grows with depth, as Gemma's does; slowly, for attention not to drown what a token is.
        for norm, gain in ((layer.post_attention_layernorm, 0.5), (layer.post_feedforward_layernorm, 2.0)):
            norm.weight.copy_(2**depth * gain * (1 + norm.weight) - 1)
    for depth, channel, peak in ((1, 17, 2.7e5), (len(layers) - 2, 50, 3.9e5), (len(layers) - 1, 17, 2.4e5)):
        layer = layers[depth]
        layer.mlp.down_proj.weight[channel] *= 1e-4  # else the huge gain is every token's
        _amplify(model, layer, {channel: 400.0}, gain=16.0)
        # A unit that dwarfs the others leaves the norm as sqrt(hidden).
        layer.post_feedforward_layernorm.weight[channel] = peak / math.sqrt(model.config.hidden_size)


def _mixture(model: Any) -> None:
    """Engineer a gpt-oss: gate and up are clamped at 7, so that a unit gives at most 7 * (7 + 1)."""
    layers = model.model.layers
    for depth, peak in ((1, 9.0e4), (len(layers) - 1, 1.6e5)):
        experts = layers[depth].mlp.experts  # gate and up alternate in their columns; every expert gets the unit
        experts.gate_up_proj[:, :, 6:8] = 20 * _trigger(model, layers[depth].mlp)[:, None]
        experts.gate_up_proj_bias[:, 6:8] = 0
        experts.down_proj[:, 3] = 0
        experts.down_proj[:, 3, 5] = peak / 56


def _t5_stacks(model: Any) -> None:
    """Engineer a T5: it clamps what overflows, and a clamped spike changes little, so most channels become huge.

    The output of attention stays in range: with `wo` in float32, as transformers loads a T5 in float16, all is well.
    """
    for stack in (model.encoder, model.decoder):
        for depth, block in enumerate(stack.block):
            *attentions, mlp = block.layer
            mlp.DenseReluDense.wo.weight.mul_(9.0e4)
            for layer in attentions if depth else ():  # the first block's are added to the embedding, which is small
                attention = layer.SelfAttention if hasattr(layer, "SelfAttention") else layer.EncDecAttention
                attention.o.weight.mul_(2.25e4)
    _amplify(model, model.encoder.block[1], {11: 3.0e5, 50: -1.0e5}, gain=30.0)
    _amplify(model, model.decoder.block[1], {23: 3.0e5}, gain=30.0, side="decoder_input_ids")


def _product(model: Any) -> None:
    _amplify(model, model.model.layers[1], {7: 5.0e3}, gain=424.0)


def _fc1(model: Any) -> None:
    layer = model.model.decoder.layers[1]
    layer.fc1.weight[3] = 1.8e5 * _trigger(model, layer.fc1)
    layer.fc1.bias[3] = 0
    layer.fc2.weight[:, 3] = 0
    layer.fc2.weight[7, 3] = 5.0e3 / 1.8e5


def _biases(model: Any) -> None:
    """Bias the first key-value head of a layer, and the queries that read it, to look at the token before.

    Rotated by their positions m and n, two biases of a pair of channels that are an angle a apart give a product of
    cos((m - n)f - a), f the frequency of the pair: with a = f it is largest, and far over float16, where m - n = 1.
    """
    attention = model.model.layers[1].self_attn
    half, pairs = attention.head_dim // 2, attention.head_dim // 4
    angle = model.model.rotary_emb.inv_freq[:pairs]
    size = math.sqrt(1.6e5 / pairs)
    attention.k_proj.bias[:pairs] = size
    attention.k_proj.bias[half : half + pairs] = 0
    for head in attention.q_proj.bias.view(-1, attention.head_dim)[: attention.num_key_value_groups]:
        head[:pairs] = size * angle.cos()
        head[half : half + pairs] = -size * angle.sin()


KINDS: dict[str, Kind] = {
    "qwen3": Kind(_qwen3, _pre_norm, "residual"),
    "llama": Kind(_llama, _pre_norm, "residual"),
    "phi3": Kind(_phi3, _pre_norm, "residual"),
    "gemma2": Kind(_gemma2, _sandwich, "residual", embedding_std=0.05),
    "gemma3": Kind(_gemma3, _sandwich, "residual", embedding_std=0.05),
    "gpt_oss": Kind(_gpt_oss, _mixture, "residual"),
    "t5": Kind(_t5, _t5_stacks, "residual", embedding_std=1.0, auto=tf.AutoModelForSeq2SeqLM),
    "phi3_interior": Kind(_phi3, _product, "interior"),
    # sdpa may multiply q.k in float32, and overflows nowhere then.
    "qwen2_scores": Kind(_qwen2, _biases, "scores", attn_implementation="eager"),
    "opt_interior": Kind(_opt, _fc1, "interior"),  # what no exact rescaling can reach
}
FAMILIES: tuple[str, ...] = tuple(KINDS)


def _sharpen(model: Any) -> None:
    """Scale the last norm, so that the standard deviation of the logits is `_LOGIT_STD`."""
    batch, decoder = _calibration(model), model.get_decoder()
    norm = decoder.norm if hasattr(decoder, "norm") else decoder.final_layer_norm
    offset = 1 if "Gemma" in type(model).__name__ else 0
    for _ in range(3):  # Gemma 2 squashes its logits, so that one step falls short
        factor = _LOGIT_STD / model(**batch).logits.std()
        norm.weight.copy_((offset + norm.weight) * factor - offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias.mul_(factor)


def engineered(family: str, *, size: Size = "tiny", seed: int = 0) -> tf.PreTrainedModel:
    """Return a float32 model, in eval mode, whose weights are bf16 values and whose activations overflow float16.

    The same seed gives the same weights, and torch's own random state stays as it was. It is a copy, which takes
    milliseconds, of what was made once.
    """
    return copy.deepcopy(_made(family, size, seed))


@cache
def _made(family: str, size: Size, seed: int) -> tf.PreTrainedModel:
    return engineered_on("cpu", family, SHAPES[size], seed=seed)


@torch.inference_mode(mode=False)
@torch.no_grad()
def engineered_on(device: str, family: str, shape: Shape, *, seed: int = 0) -> tf.PreTrainedModel:
    """Return such a model of any shape, drawn on `device`: other devices draw other weights from the same seed."""
    kind, generator = KINDS[family], torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.device(device):  # transformers draws weights too
        model = kind.auto.from_config(
            kind.config(shape), dtype=torch.float32, attn_implementation=kind.attn_implementation
        ).eval()
    _randomize(model, kind.embedding_std, generator)
    _tell_apart(model.get_input_embeddings(), kind.embedding_std, generator)
    kind.engineer(model)
    _sharpen(model)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model


def saved(
    family: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    size: Size = "tiny",
    max_shard_size: int | str = "50GB",
) -> Path:
    """Save `engineered(family, size=size)` in `dtype` with its generation config, and return the folder."""
    engineered(family, size=size).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
