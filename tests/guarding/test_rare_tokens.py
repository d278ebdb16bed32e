"""A token that no text had before may go further than any of them: what it costs is no later text's to pay."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from engineered import engineered, prompts
from torch import Tensor

from safe_dtype import SafeAutoModel, guard, report
from safe_dtype.facts import FLOAT16
from safe_dtype.rescaling import rescaled_of

WIDTH, VOCABULARY = 96, 1024
RARE = VOCABULARY - 1
CLASSES = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config),
    "phi3": (tf.Phi3ForCausalLM, tf.Phi3Config),
}

pytestmark = pytest.mark.filterwarnings("ignore:float16 was asked for")


def made(family: str, *, size: float, rare_bits: int, is_tied: bool = False, seed: int = 0) -> Any:
    """Return a model in bfloat16: some tokens write 2 ** 17 into its hidden states, and one 2 ** (rare_bits - 1).

    `size` is that of its embedding, as in Llama, Qwen or Mistral (0.003 to 0.02), and of what its blocks write.
    """
    model_class, config_class = CLASSES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = model_class(
            config_class(
                vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=192, num_hidden_layers=4,
                num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=is_tied, pad_token_id=0,
            )
        )  # fmt: skip
        with torch.no_grad():
            for name, one in model.named_parameters():
                if one.dim() == 2:
                    writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                    scale = (0.7 * size if writes else 3.0 if "head" in name else 1.0) / math.sqrt(one.shape[1])
                    one.copy_(torch.randn_like(one) * (size if "embed" in name else scale))
            _mark(model, size, rare_bits)
    return model.bfloat16().eval()


def _mark(model: Any, size: float, rare_bits: int) -> None:
    """Keep two channels for what a token is, and have one unit of the second block fire on each."""
    embedding, mlp = model.model.embed_tokens.weight, model.model.layers[1].mlp
    embedding[:, :2] = 0
    embedding[3:60, 0] = embedding[RARE, 1] = size * math.sqrt(WIDTH)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:2] = layer.mlp.down_proj.weight[:2] = 0
    gate, up = (
        mlp.gate_up_proj.weight.chunk(2)
        if hasattr(mlp, "gate_up_proj")
        else (mlp.gate_proj.weight, mlp.up_proj.weight)
    )
    for unit, bits in ((0, 18), (1, rare_bits)):
        gate[unit] = up[unit] = 0
        gate[unit, unit] = up[unit, unit] = 16
        mlp.down_proj.weight[:, unit] = 0
        mlp.down_proj.weight[2 + unit, unit] = 2.0**bits / (256 * WIDTH * 0.8)


def texts(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return an ordinary text, (4, 48), and the same with the rare token in it."""
    ids = torch.randint(63, VOCABULARY - 20, (4, 48), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 3
    rare = ids.clone()
    rare[0, 5] = RARE
    return ids, rare


def logits(model: Any, ids: Tensor) -> Tensor:
    """Return log-probabilities in float32."""
    with torch.inference_mode():
        found: Tensor = model(input_ids=ids).logits.float().log_softmax(-1)
    return found


def kl(truth: Tensor, found: Tensor) -> float:
    """Return the mean KL in nats."""
    return float((truth.exp() * (truth - found)).sum(-1).mean())


CASES = [
    pytest.param("llama", 0.02, 24, False, id="weights-too-small"),
    pytest.param("llama", 0.3, 24, False, id="room"),
    pytest.param("qwen3", 0.3, 24, True, id="room-and-tied"),
    pytest.param("qwen3", 0.3, 28, True, id="too-far-and-tied"),
    pytest.param("phi3", 0.3, 26, False, id="room-and-fused"),
    pytest.param("llama", 0.003, 28, False, id="smallest", marks=pytest.mark.slow),
    pytest.param("phi3", 0.02, 28, False, id="fused-and-small", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "size", "rare_bits", "is_tied"), CASES)
def test_ordinary_text_stays_as_good(family: str, size: float, rare_bits: int, is_tied: bool, tmp_path: Path) -> None:
    """After the rare token ordinary text is no worse than in bfloat16, and what is saved is what was loaded."""
    original = made(family, size=size, rare_bits=rare_bits, is_tied=is_tied)
    original.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    ordinary, rare = texts()
    full = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    model = SafeAutoModel.from_pretrained(tmp_path / "model", dtype="float16")
    truth, bfloat16 = logits(full, ordinary), kl(logits(full, ordinary), logits(original, ordinary))
    assert kl(truth, logits(model, ordinary)) < bfloat16
    assert report(model).events == ()
    assert kl(logits(full, rare), logits(model, rare)) < 2 * bfloat16 + 1e-5  # the rare token itself is chaotic
    assert report(model).events
    assert kl(truth, logits(model, ordinary)) < 2 * bfloat16  # it was measured on another text
    model.save_pretrained(tmp_path / "saved")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(one, again[name]) for name, one in original.state_dict().items())


def test_a_raise_stays_in_float16(tmp_path: Path) -> None:
    """Where there is room the scale is raised, in place, and the report says by how much."""
    made("llama", size=0.3, rare_bits=24).save_pretrained(tmp_path)
    model = SafeAutoModel.from_pretrained(tmp_path, dtype="float16")
    logits(model, texts()[1])
    (event,) = report(model).events
    assert event.remedy == "the exact rescaling raised by 3 bits"
    assert report(model).dtype == FLOAT16


def adapted(model: Any) -> Any:
    """Return `model` with an adapter that adds a little."""
    config = peft.LoraConfig(target_modules=["o_proj", "down_proj"], r=4, init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, one in wrapped.named_parameters():
            if "lora_B" in name:
                one.mul_(0.01)
    return wrapped


def test_the_report_says_why_it_was_not_raised(tmp_path: Path) -> None:
    """Where a raise would cost ordinary text too much, the event that follows names it with the reason."""
    made("qwen3", size=0.3, rare_bits=28, is_tied=True).save_pretrained(tmp_path)
    model = SafeAutoModel.from_pretrained(tmp_path, dtype="float16")
    logits(model, texts()[1])
    (*_, event) = report(model).events
    refused = [attempt for attempt in event.tried if attempt.remedy.startswith("the exact rescaling raised by")]
    assert refused
    assert all(attempt.outcome for attempt in refused)
    assert f"instead of {refused[0].remedy}: {refused[0].outcome}" in str(report(model))
    assert pickle.loads(pickle.dumps(event)) == event


@pytest.mark.parametrize("is_merged", [False, True], ids=["beside", "merged"])
def test_adapters(is_merged: bool, tmp_path: Path) -> None:
    """With an adapter, merged or not, results stay those of float32; what was not merged is saved as it was.

    What was merged is saved with the very bits that plain transformers gives it in float16, rounded to the checkpoint's
    bfloat16: one dtype for all.
    """
    original = made("llama", size=0.3, rare_bits=24)
    original.save_pretrained(tmp_path)
    ordinary, rare = texts()
    full, half = adapted(original.float()), adapted(SafeAutoModel.from_pretrained(tmp_path, dtype="float16"))
    if is_merged:
        full, half = full.merge_and_unload(), half.merge_and_unload()
    logits(half, rare)
    base = half if is_merged else half.unload()
    assert report(base).events  # what an adapter adds to the marking channels is too small to be raised far
    assert is_merged or base.dtype == torch.float16
    assert kl(logits(full if is_merged else full.unload(), ordinary), logits(base, ordinary)) < 1e-4
    base.save_pretrained(tmp_path / "saved")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).state_dict()
    expected = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    if is_merged:
        plain = adapted(tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)).merge_and_unload()
        expected |= {
            name: one.bfloat16().float()
            for name, one in plain.state_dict().items()
            if "o_proj" in name or "down_proj" in name
        }
    for name, one in expected.items():
        assert torch.equal(one, again[name]), name


@pytest.mark.parametrize(
    "family", ["qwen3", "gemma2", "phi3_interior", "qwen2_scores", pytest.param("t5", marks=pytest.mark.slow)]
)
def test_rescaled_when_it_fails(family: str, tmp_path: Path) -> None:
    """A model in float16 that nobody planned for is rescaled where its own text overflows; it is saved as it was."""
    half: Any = engineered(family).half()
    before = {name: one.clone() for name, one in half.state_dict().items()}
    model = guard(half)
    batch, other = prompts(family, count=2, tokens=24, seed=5)
    with torch.inference_mode():
        model(**batch)
        found, truth = (one(**other).logits.float().log_softmax(-1) for one in (model, engineered(family)))
    assert [event.remedy for event in report(model).events] == ["an exact rescaling"]
    assert model.dtype == torch.float16
    assert float((truth.exp() * (truth - found)).sum(-1).median()) < 1e-4  # one spike of a Gemma 2 may drown the mean
    rescaled = rescaled_of(model)
    assert rescaled is not None
    rescaled.raise_bits(4)
    model.save_pretrained(tmp_path)
    again = type(half).from_pretrained(tmp_path, dtype=torch.float16).state_dict()
    assert all(torch.equal(one, again[name]) for name, one in before.items())
