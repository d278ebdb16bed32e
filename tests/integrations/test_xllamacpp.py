"""GGUF files: what is written, what transformers reads in it, and what llama.cpp makes of it."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from command_run import Run, run  # noqa: F401  # a fixture
from conftest import ROOT
from safe_dtype.integrations.llama_cpp import drift_of_llama_cpp, export_gguf
from safe_dtype.integrations.llama_cpp.gguf_architectures import gguf_model
from safe_dtype.integrations.llama_cpp.gguf_config import config_by_file
from safe_dtype.integrations.llama_cpp.gguf_file import write_gguf
from safe_dtype.integrations.llama_cpp.gguf_tokens import gguf_tokens

from safe_dtype.checkpoints.weight_files import mark_weight_files
from safe_dtype.errors import EnvironmentNotFitError, NotExportableError
from safe_dtype.facts import Where

TINY = ROOT / "examples" / "tiny-qwen3"
SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 1, "bos_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MADE = {
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZES, head_dim=32)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
    "llama3": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
}


def made(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Save a small model of that kind in `dtype`, and return it in float32."""
    torch.manual_seed(0)
    model = MADE[name]().eval()
    for parameter in model.parameters():  # norms and biases too, so that a wrong one shows
        torch.nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32)  # `float()` would leave rotary frequencies rounded


def written(folder: Path, kind: str) -> Path:
    """Write the model in `folder`, with the tokenizer of the bundled one."""
    config = json.loads((folder / "config.json").read_text())
    write_gguf(
        folder / "model.gguf", kind, gguf_model(config), gguf_tokens(TINY, 2048), mark_weight_files(Where(folder))
    )
    return folder / "model.gguf"


@pytest.mark.needs("gguf_loader")
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("kind", ["F32", "BF16", "F16", "Q8_0"])
def test_read_by_transformers(name: str, kind: str, tmp_path: Path) -> None:
    """Transformers' own loader gives the same weights: the very bits where the type holds them."""
    model = made(name, tmp_path)
    config = config_by_file(written(tmp_path, kind), model.config)
    again = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", config=config, dtype=torch.float32
    )
    ids = torch.arange(12)[None]
    with torch.no_grad():
        mine, wanted = again(ids).logits, model(ids).logits
    if kind in ("F32", "BF16"):
        assert torch.equal(mine, wanted)
    else:
        assert (mine - wanted).norm() < (0.05 if kind == "Q8_0" else 0.005) * wanted.norm()


def test_factors_of_llama_3() -> None:
    """Its scaled frequencies are those that transformers computes."""
    config = tf.LlamaConfig(**SIZES, rope_parameters=LLAMA3)
    made_factors = torch.tensor(gguf_model(config.to_dict()).rope_factors)
    plain = 1.0 / 5e5 ** (torch.arange(0, 16, 2) / 16)
    assert torch.allclose(plain / made_factors, tf.LlamaForCausalLM(config).model.rotary_emb.inv_freq, rtol=1e-6)


REFUSED = {
    "architecture": ({"model_type": "gemma3"}, "gemma3"),
    "window": ({"use_sliding_window": True}, "a window"),
    "activation": ({"hidden_act": "gelu"}, "gelu"),
    "scaling": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
    "quantized": ({"quantization_config": {"quant_method": "fp8"}}, "quantized already"),
    "biases": ({"attention_bias": True}, "biases"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    """What llama.cpp would leave out of a model is named, and no file is begun."""
    changed, word = REFUSED[case]
    with pytest.raises(NotExportableError, match=word):
        gguf_model({**json.loads((TINY / "config.json").read_text()), **changed})


def test_unknown_tensor(tmp_path: Path) -> None:
    """A tensor without a name in llama.cpp is refused, and not left out."""
    made("qwen3", tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.layers.0.mlp.extra.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(NotExportableError, match=r"mlp\.extra"):
        written(tmp_path, "BF16")


def test_beyond_float16(tmp_path: Path) -> None:
    """Numbers that float16 does not hold are refused in F16, and written in BF16."""
    model = made("qwen3", tmp_path)
    with torch.no_grad():
        model.lm_head.weight[3, 5] = 1e5
    model.bfloat16().save_pretrained(tmp_path)
    with pytest.raises(NotExportableError, match=r"reaches 99,800"):
        written(tmp_path, "F16")
    assert written(tmp_path, "BF16").stat().st_size


@pytest.mark.slow
def test_exported(tmp_path: Path) -> None:
    """The bundled model is written with its tokenizer, and its drift is measured; where that is too much, no file is left."""
    exported = export_gguf(TINY, tmp_path / "tiny.gguf", kind="BF16")
    assert (exported.drift.kl_mean, exported.beyond) == (0.0, None)
    assert exported.bytes == exported.file.stat().st_size
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    own = tf.AutoTokenizer.from_pretrained(TINY)
    for text in ("The lighthouse, 1987: 'not lit'.", "  def f(x):\n\treturn x"):
        assert tokenizer(text).input_ids == own(text).input_ids
    refused = export_gguf(TINY, tmp_path / "none.gguf", kind="Q8_0", max_drift=1e-9)
    assert refused.beyond
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf"]


def test_special_tokens() -> None:
    """Ends, control tokens and the template are those of the tokenizer."""
    tokens = gguf_tokens(TINY, 2048)
    assert (tokens.cut, tokens.kinds[:4], dict(tokens.special)) == ("gpt-2", (3, 3, 3, 1), {"eos": 2, "pad": 0})
    assert not tokens.adds_bos
    assert tokens.chat_template
    assert len(tokens.tokens) == len(tokens.kinds) == 2048


def test_other_tokenizers(tmp_path: Path) -> None:
    """Another kind of tokenizer, or another way to cut a text, is refused by name."""
    table = json.loads((TINY / "tokenizer.json").read_text())
    for changed, word in (
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts a text"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**table, **changed}))
        with pytest.raises(NotExportableError, match=word):
            gguf_tokens(tmp_path, 2048)


@pytest.mark.needs("gguf_loader")  # which reads the file back
def test_command(tmp_path: Path, run: Run) -> None:  # noqa: F811
    """`safe-dtype export gguf` prints what was measured, as values of JSON."""
    file = tmp_path / "tiny.gguf"
    done = run("export", "gguf", str(TINY), "--out", str(file), "--type", "f16", "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["type"] == "F16"
    assert file.exists()


@pytest.mark.slow
def test_command_beyond_the_limit(tmp_path: Path, run: Run) -> None:  # noqa: F811
    """Its status is 3."""
    file = tmp_path / "tiny.gguf"
    assert run("export", "gguf", str(TINY), "--out", str(file), "--type", "q8_0", "--max-drift", "0").returncode == 3


def test_no_llama_cpp(tmp_path: Path) -> None:
    """An interpreter without llama.cpp is named, with what to do."""
    made("qwen3", tmp_path)
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    if find_spec("xllamacpp"):
        pytest.skip("it is here")
    with pytest.raises(EnvironmentNotFitError, match="pip install xllamacpp"):
        drift_of_llama_cpp(written(tmp_path, "BF16"), model, [[1, 2, 3]])


@pytest.mark.slow
@pytest.mark.needs("xllamacpp")
class TestLlamaCpp:
    """What llama.cpp itself computes."""

    @pytest.mark.parametrize(("kind", "limit"), [("F32", 1e-6), ("BF16", 1e-3), ("F16", 1e-4), ("Q8_0", 5e-3)])
    def test_bundled_model(self, kind: str, limit: float, tmp_path: Path) -> None:
        """It generates the bundled model's tokens, and its distributions are within rounding of float32's."""
        exported = export_gguf(TINY, tmp_path / "tiny.gguf", kind=kind, llama_cpp=sys.executable)
        assert exported.llama_cpp
        assert exported.llama_cpp.positions >= 48
        assert exported.llama_cpp.kl < limit
        assert exported.llama_cpp.agreement > 0.98

    @pytest.mark.parametrize("name", MADE)
    def test_every_architecture(self, name: str, tmp_path: Path) -> None:
        """Rotary embeddings, biases and norms are where llama.cpp looks for them."""
        model = made(name, tmp_path)
        prompts = [list(range(2, 30)), [5, 9, 60]]
        answer = drift_of_llama_cpp(written(tmp_path, "F32"), model, prompts, python=sys.executable)
        assert answer.kl < 1e-4
