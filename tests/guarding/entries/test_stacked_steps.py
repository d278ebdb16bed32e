"""A guarded model whose layers are computed together generates, fails and goes on as one whose layers are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from models.forwards.compiled import compile_all, counted, model_of

from safe_dtype import SafeAutoModelForCausalLM, guard, plan_of, report, unguard
from safe_dtype.decoding.decoder_stack import DecoderStack
from safe_dtype.decoding.stack_program import StackProgram
from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.models.forwards.layer_forward import compile_layers
from safe_dtype.models.planned_layout import take_compiled_off
from safe_dtype.testing import fault

pytest.importorskip("llvmlite", reason="forwards are compiled by llvmlite, of the extra `fast`")

PROMPT = torch.arange(3, 51)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small Qwen3."""
    path = tmp_path_factory.mktemp("model")
    model_of("qwen3").save_pretrained(path)
    return path


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that run from now on."""
    return counted(monkeypatch, StackProgram, "run")


def stacked(folder: Path) -> Any:
    """Return a planned model whose layers are compiled, whatever was measured on this machine."""
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").eval()
    plan = plan_of(model)
    unguard(model)
    take_compiled_off(model)
    compile_all(model)
    assert compile_layers(model, 8) == 2
    return guard(model, plan=plan)


def greedy(model: Any, **options: Any) -> list[int]:
    """Return the tokens that a model goes on with."""
    tokens = model.generate(PROMPT, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)
    return tokens[0, PROMPT.shape[1] :].tolist()  # type: ignore[no-any-return]


def test_tokens(folder: Path, programs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step but the prompt's is one program, and tokens are those of layers by themselves."""
    model = stacked(folder)
    tokens = greedy(model)
    assert len(programs) == 11
    monkeypatch.setattr(DecoderStack, "_begun", lambda *_: None)
    assert greedy(model) == tokens
    assert len(programs) == 11
    assert not report(model).events


def test_a_cache_is_transformers_own_in_the_end(folder: Path, programs: list[Any]) -> None:
    """Who asks for the cache gets a plain one, with all keys and values."""
    output = stacked(folder).generate(
        PROMPT, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, return_dict_in_generate=True
    )
    assert len(programs) == 3
    assert {type(layer) for layer in output.past_key_values.layers} == {tf.cache_utils.DynamicLayer}
    assert output.past_key_values.get_seq_length() == PROMPT.shape[1] + 3


@pytest.mark.parametrize("call", [2, 7])
def test_a_step_that_fails(call: int, folder: Path, programs: list[Any]) -> None:
    """A generation that fails on the way has the tokens of before up to there, and goes on from that step."""
    model = stacked(folder)
    expected = greedy(model)
    programs.clear()
    with fault(model, "lm_head", "nan", call=call), pytest.warns(SafeDtypeWarning):
        tokens = greedy(model)
    assert programs
    assert len(report(model).events) == 1
    assert tokens[:call] == expected[:call]
    assert len(tokens) == len(expected)


def test_attention_that_drops_scores(folder: Path, programs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention alone in training drops scores in each layer, as some have it to see how sure a model is."""
    model, results = stacked(folder), []
    for layer in model.model.layers:
        layer.self_attn.train()
        layer.self_attn.attention_dropout = 0.5
    for _ in range(2):
        torch.manual_seed(0)
        results.append(greedy(model))
        monkeypatch.setattr(DecoderStack, "_begun", lambda *_: None)
    assert results[0] == results[1]
    assert not programs


def test_let_go(folder: Path, programs: list[Any]) -> None:
    """Without its guard a model computes its layers by themselves."""
    model = stacked(folder)
    tokens = greedy(model)
    programs.clear()
    unguard(model)
    assert greedy(model) == tokens
    assert not programs
