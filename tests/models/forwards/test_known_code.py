"""Functions of transformers are known by what they say."""

from __future__ import annotations

import dis
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.phi3 import modeling_phi3 as phi3
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from safe_dtype.models.forwards import known_forwards
from safe_dtype.models.forwards.known_code import KnownCode, digest_of, is_known
from safe_dtype.models.forwards.unwrapped import unwrapped

KNOWN = (
    pytest.param(llama.LlamaRMSNorm.forward, known_forwards.NORM, id="norm"),
    pytest.param(qwen3.Qwen3RMSNorm.forward, known_forwards.NORM, id="norm-of-another"),
    pytest.param(llama.LlamaMLP.forward, known_forwards.GATED, id="gate"),
    pytest.param(SiLUActivation.forward, known_forwards.SILU, id="silu"),
    pytest.param(qwen3.apply_rotary_pos_emb, known_forwards.ROTARY, id="rotation"),
    pytest.param(phi3.rotate_half, known_forwards.ROTATE_HALF, id="half"),
    pytest.param(unwrapped(llama.LlamaAttention.forward), known_forwards.ATTENTION, id="attention"),
    pytest.param(unwrapped(qwen2.Qwen2Attention.forward), known_forwards.ATTENTION_IN_WINDOW, id="attention-in-a-window"),
    pytest.param(
        unwrapped(mistral.MistralAttention.forward),
        known_forwards.ATTENTION_IN_WINDOW_OF_CONFIG,
        id="window-of-the-config",
    ),
    pytest.param(unwrapped(qwen3.Qwen3Attention.forward), known_forwards.ATTENTION_WITH_NORMS, id="attention-of-norms"),
    pytest.param(
        unwrapped(llama.LlamaDecoderLayer.forward), known_forwards.DECODER_LAYER, id="decoder-layer"
    ),
)  # fmt: skip


@pytest.mark.parametrize(("function", "known"), KNOWN)
def test_known(function: Any, known: KnownCode) -> None:
    """What transformers has under many names: a digest that is missing is one of a text that nobody has compared."""
    assert digest_of(function) in known.digests
    assert is_known(function, known)


@pytest.mark.parametrize(("function", "known"), KNOWN)
def test_every_global_is_told(function: Any, known: KnownCode) -> None:
    """A known function uses no global but those whose meaning is asked for."""
    instructions = dis.get_instructions(function.__code__)
    assert {one.argval for one in instructions if one.opname == "LOAD_GLOBAL"} == set(known.globals)


class OtherConstant(nn.Module):
    """A norm that squares by another power."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Divide rows by something else."""
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(4).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def with_a_closure(factor: float) -> Any:
    """Return a function that uses a value of another."""

    def silu(self: Any, x: Tensor) -> Tensor:
        return factor * nn.functional.silu(x)

    return silu


@pytest.mark.parametrize(
    ("function", "known"),
    [
        pytest.param(GemmaRMSNorm.forward, known_forwards.NORM, id="another-norm"),
        pytest.param(phi3.Phi3Attention.forward, known_forwards.ATTENTION, id="another-attention"),
        pytest.param(
            qwen2.Qwen2Attention.forward, known_forwards.ATTENTION_IN_WINDOW_OF_CONFIG, id="another-window"
        ),
        pytest.param(OtherConstant.forward, known_forwards.NORM, id="another-constant"),
        pytest.param(GELUActivation.forward, known_forwards.SILU, id="another-activation"),
        pytest.param(phi3.apply_rotary_pos_emb, known_forwards.ROTARY, id="a-part-of-the-width"),
        pytest.param(with_a_closure(2.0), known_forwards.SILU, id="a-closure"),
        pytest.param(lambda self, x: nn.functional.silu(x), known_forwards.SILU, id="amid-a-line"),
        pytest.param(len, known_forwards.NORM, id="no-function-of-python"),
        pytest.param(None, known_forwards.NORM, id="nothing"),
    ],
)  # fmt: skip
def test_not_known(function: Any, known: KnownCode) -> None:
    """What computes something else, or may."""
    assert not is_known(function, known)


def test_what_a_function_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function is known with those that it calls by name: another one of that name, and it is not known any more."""
    monkeypatch.setattr(qwen3, "rotate_half", lambda x: x)
    assert not is_known(qwen3.apply_rotary_pos_emb, known_forwards.ROTARY)


def test_defaults_count() -> None:
    """A function whose defaults were replaced is not known."""
    function = llama.apply_rotary_pos_emb
    other = FunctionType(function.__code__, function.__globals__, function.__name__, (2,))
    assert digest_of(other) == digest_of(function)
    assert not is_known(other, known_forwards.ROTARY)


ROWS = "def half(x):\n    y = x * 0.5\n    return y\n"


def imported(file: Path, text: str) -> Any:
    """Return the last function of a file that says `text`."""
    file.write_text(text)
    names: dict[str, Any] = {"keep": lambda function: function}
    exec(compile(text, str(file), "exec"), names)
    return [one for one in names.values() if isinstance(one, FunctionType)][-1]


@pytest.mark.parametrize(
    ("text", "is_same"),
    [
        pytest.param("def other(x):\n    y = x * 0.5\n    return y\n", True, id="name"),
        pytest.param('def half(x):\n    """Halve."""\n    # by a half\n    y = (x * .5)\n    return y\n', True, id="words"),
        pytest.param("def half(x: object) -> object:\n    y = x * 0.5\n    return y\n", True, id="annotations"),
        pytest.param("@keep\ndef half(x):\n    y = x * 0.5\n    return y\n", True, id="decorator"),
        pytest.param("def half(x):\n    y = x * 0.25\n    return y\n", False, id="number"),
        pytest.param("def half(x, z=1):\n    y = x * 0.5\n    return y\n", False, id="argument"),
        pytest.param("def half(x):\n    y = x * 0.5\n    return y + 0\n", False, id="more"),
    ],
)  # fmt: skip
def test_what_a_digest_is_of(tmp_path: Path, text: str, *, is_same: bool) -> None:
    """Functions that compute the same by the same names have one digest, others another."""
    first, second = imported(tmp_path / "first.py", ROWS), imported(tmp_path / "second.py", text)
    assert digest_of(first) is not None
    assert (digest_of(second) == digest_of(first)) == is_same


def test_a_file_that_has_changed(tmp_path: Path) -> None:
    """A text is not that of code that was imported before it was written."""
    function = imported(tmp_path / "rows.py", ROWS.replace("0.5", "0.125"))
    (tmp_path / "rows.py").write_text(ROWS)
    assert digest_of(function) is None


def test_no_text(tmp_path: Path) -> None:
    """Code whose file is gone says nothing."""
    function = imported(tmp_path / "rows.py", ROWS.replace("0.5", "0.375"))
    (tmp_path / "rows.py").unlink()
    assert digest_of(function) is None
