"""The fault matrix: wherever, whenever and however a step fails, what comes out is a run that switched dtype there."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import (
    ARCHITECTURES,
    BOTH_ROWS,
    DOWN,
    IDS,
    NEW_TOKENS,
    ONE_ROW,
    Run,
    Tape,
    generate,
    generator,
)
from guarding.oracle import Switch
from pairwise import pairwise
from tiny_models import TINY
from torch import nn
from transformers import cache_utils

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, guard, report
from safe_dtype.guarding import FailureKind
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

KINDS = {
    "cublas": FailureKind.OP_UNSUPPORTED,
    "not_implemented": FailureKind.OP_UNSUPPORTED,
    "nan": FailureKind.NONFINITE,
    "inf": FailureKind.NONFINITE,
    "mismatch": FailureKind.DTYPE_MISMATCH,
}
MOMENTS = {"prefill": 0, "first": 1, "middle": 5, "last": NEW_TOKENS - 1}
BF16, FP32 = torch.bfloat16, torch.float32
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": BOTH_ROWS,
    "sampling": BOTH_ROWS | {"do_sample": True, "temperature": 1.5, "top_k": 0},
    "beam": BOTH_ROWS | {"num_beams": 4},
    "beam-sampling": BOTH_ROWS | {"num_beams": 3, "do_sample": True},
    "return-sequences": BOTH_ROWS | {"do_sample": True, "num_return_sequences": 3},
    "guidance": BOTH_ROWS | {"guidance_scale": 1.5},
    "penalties": BOTH_ROWS | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "custom-loop": BOTH_ROWS | {"custom_generate": transformers.GenerationMixin._sample, "do_sample": True},
}
CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("qwen3", {}),
    "static": ("qwen3", {"cache_implementation": "static", "disable_compile": True}),
    "sliding": ("mistral", {}),
    "sliding-and-full": ("gemma3", {}),
    "static-sliding": ("mistral", {"cache_implementation": "static", "disable_compile": True}),
    "static-sliding-and-full": ("gemma3", {"cache_implementation": "static", "disable_compile": True}),
    **(
        {"float8": ("qwen3", {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}})}
        if hasattr(cache_utils, "Fp8QuantizedLayer")  # since transformers 5.21
        else {}
    ),
    "none": ("qwen3", {"use_cache": False}),
    "chunked-prefill": ("qwen3", {"prefill_chunk_size": 2}),
    "sliding-beams": ("gemma3", {"num_beams": 3}),
    "states-beams": ("mamba", {"num_beams": 3}),
}


def frozen(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return `options` as a key."""
    return tuple((name, repr(value)) for name, value in options.items())


_switched: dict[Any, Run] = {}


def switched(name: str, call: int, options: dict[str, Any]) -> Run:
    """Return the run that switches to float32 on purpose at `call`; one for all kinds of failure."""
    key = (name, call, frozen(options))
    if key not in _switched:
        model = generator(name)
        Switch(model, call, FLOAT32)
        _switched[key] = generate(model, **options)
    return _switched[key]


def check(name: str, module: str, kind: str, call: int, options: dict[str, Any]) -> None:
    """Let `module` fail at `call`, and compare with the run that switches there."""
    model = guard(generator(name))
    with fault(model, module, kind, call=call) as put:
        found = generate(model, **options)
    assert put.fired
    assert found.differs(switched(name, call, options)) == []
    events = report(model).events
    assert [event.after for event in events][-1] == FLOAT32
    assert len(events) == (2 if kind == "mismatch" else 1)  # of a mismatch the module's inputs are aligned first
    for event in events:
        assert (event.kind, event.before, event.module) == (KINDS[kind], BFLOAT16, module)
        assert event.step == call
        assert not event.restarted
    assert {one.dtype for one in model.parameters()} == {FP32}


@pytest.mark.parametrize(("strategy", "moment", "kind"), pairwise(STRATEGIES, MOMENTS, ["cublas", "nan"]))
def test_strategies(strategy: str, moment: str, kind: str) -> None:
    """Every decoding strategy goes on from the very step, with its tokens, scores, beams and random numbers."""
    call = MOMENTS[moment]
    if strategy == "guidance":
        call *= 2  # each of its steps calls the model twice, and the first of them once
    check("qwen3", DOWN, kind, call, STRATEGIES[strategy])


@pytest.mark.parametrize(
    ("cache_name", "moment", "kind"),
    pairwise(
        CACHES, MOMENTS, ["cublas", "nan", "inf", "mismatch"], fewer={1: ("prefill", "middle"), 2: ("cublas", "nan")}
    ),
)
def test_caches(cache_name: str, moment: str, kind: str) -> None:
    """Every cache is rolled back to where the step began, and cast."""
    name, options = CACHES[cache_name]
    module = DOWN if name != "mamba" else "backbone.layers.1.mixer.out_proj"
    check(name, module, kind, MOMENTS[moment], BOTH_ROWS | options)


def linear_of(model: nn.Module) -> str:
    """Return the name of the last linear layer in the second block of the decoder."""
    names = [name for name, one in model.named_modules() if isinstance(one, (nn.Linear, transformers.Conv1D))]
    return [name for name in names if ".1." in name and ("decoder" in name or "encoder" not in name)][-1]


@pytest.mark.parametrize(
    ("name", "call", "kind"),
    pairwise(
        sorted(set(ARCHITECTURES) - {"qwen3", "mistral", "gemma3"}), [0, 1, 6], ["cublas", "nan"], fewer={1: (0, 6)}
    ),
)
def test_architectures(name: str, call: int, kind: str) -> None:
    """Attention, mixtures, states, hybrids and encoder-decoders alike go on from the very step."""
    options = BOTH_ROWS if name != "rwkv" else {"input_ids": IDS}
    module = linear_of(generator(name))
    model = guard(generator(name))
    with fault(model, module, kind, call=call) as put:
        found = generate(model, **options)
    assert put.fired
    assert found.differs(switched(name, call, options)) == []
    (event,) = report(model).events
    assert (event.kind, event.module, event.step, event.after) == (KINDS[kind], module, call, FLOAT32)


MODULES = {
    "embedding": ("qwen3", "model.embed_tokens"),
    "first-layer": ("qwen3", "model.layers.0.self_attn.q_proj"),
    "last-layer": ("qwen3", "model.layers.2.mlp.down_proj"),
    "norm": ("qwen3", "model.norm"),
    "head": ("qwen3", "lm_head"),
    "router": ("mixtral", "model.layers.1.mlp.gate"),
    "experts": ("mixtral", "model.layers.1.mlp.experts"),
}


@pytest.mark.parametrize("kind", ["cublas", "not_implemented", "nan", "inf"])
@pytest.mark.parametrize("place", MODULES)
def test_modules(place: str, kind: str) -> None:
    """Whatever the module, it is found and named."""
    name, module = MODULES[place]
    check(name, module, kind, 3, BOTH_ROWS)


@pytest.mark.parametrize("call", [0, 4])
def test_one_row_of_the_batch(call: int) -> None:
    """A NaN in one row brings all rows to float32 at that step: they share the weights."""
    model = guard(generator())
    with fault(model, "model.layers.2.mlp.down_proj", "nan", call=call, row=1) as put:
        found = generate(model, **BOTH_ROWS)
    assert put.fired
    assert found.differs(switched("qwen3", call, BOTH_ROWS)) == []


@pytest.mark.parametrize(
    ("fails", "strategy", "call", "kind"),
    pairwise(["model", "assistant", "prompt-lookup"], ["greedy", "sampling"], [0, 1, 4], ["cublas", "nan"]),
)
def test_speculation(fails: str, strategy: str, call: int, kind: str) -> None:
    """Assisted decoding goes on whichever of its models fails, and so does looking up the prompt."""

    def prepared() -> tuple[Any, Any, dict[str, Any]]:
        model, assistant = generator(), generator()
        torch.manual_seed(3)
        for one in assistant.parameters():
            one.data += 0.02 * torch.randn_like(one)
        options = ONE_ROW | {"do_sample": strategy == "sampling"}
        if fails == "prompt-lookup":
            return model, model, options | {"prompt_lookup_num_tokens": 3}
        return model, model if fails == "model" else assistant, options | {"assistant_model": assistant}

    model, failing, options = prepared()
    Switch(failing, call, FLOAT32)
    wanted = generate(model, **options)
    model, failing, options = prepared()
    guard(model)
    guard(failing)
    with fault(failing, DOWN, kind, call=call) as put:
        found = generate(model, **options)
    assert put.fired
    assert found.differs(wanted) == []
    assert len(report(failing).events) == 1


@pytest.mark.parametrize("kind", ["cublas", "nan"])
@pytest.mark.parametrize("call", MOMENTS.values(), ids=MOMENTS)
def test_streamed_once(call: int, kind: str) -> None:
    """Every token is streamed once, in order, and the end once."""
    model, tape = guard(generator()), Tape()
    with fault(model, DOWN, kind, call=call) as put:
        found = generate(model, **ONE_ROW, streamer=tape)
    assert put.fired
    assert tape.tokens == found.tensors[0][0].tolist()
    assert tape.ends == 1


def test_everything_that_can_be_returned() -> None:
    """Hidden states and attentions of every step are there, none of them of a step that failed."""
    options = BOTH_ROWS | {
        "max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_hidden_states": True,
        "output_attentions": True,
    }  # fmt: skip

    def made(name: str) -> Any:
        model = generator(name)
        model.set_attn_implementation("eager")
        return model

    plain, model = made("qwen3"), guard(made("qwen3"))
    Switch(plain, 2, FLOAT32)
    wanted = plain.generate(**options)
    with fault(model, DOWN, "nan", call=2):
        found = model.generate(**options)
    for name in ("hidden_states", "attentions"):
        assert len(found[name]) == 5
        for mine, theirs in zip(found[name], wanted[name], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("kind", ["cublas", "nan"])
@pytest.mark.parametrize("call", [0, 1, 6])
def test_embeddings_as_the_prompt(call: int, kind: str) -> None:
    """`inputs_embeds` are cast with the model."""
    with torch.no_grad():
        options = {"inputs_embeds": generator().get_input_embeddings()(IDS[1:])}
    check("qwen3", DOWN, kind, call, options)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("call", [0, 5, 12])
def test_a_chat_goes_on(name: str, call: int) -> None:
    """A cache that was passed in is the same object afterwards, and the next turn of the chat goes on from it."""

    def chat(model: Any) -> list[torch.Tensor]:
        kept = transformers.DynamicCache(config=model.config)
        first = model.generate(IDS[1:], past_key_values=kept, max_new_tokens=NEW_TOKENS, do_sample=False)
        turn = torch.cat([first, IDS[1:]], 1)
        return [first, model.generate(turn, past_key_values=kept, max_new_tokens=NEW_TOKENS, do_sample=False)]

    plain, model = generator(name), guard(generator(name))
    Switch(plain, call, FLOAT32)
    wanted = chat(plain)
    with fault(model, DOWN, "nan", call=call) as put:
        found = chat(model)
    assert put.fired
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))


def test_two_failures() -> None:
    """A generation that fails twice takes two steps down."""
    model = guard(generator(), policy="ladder=bf16>fp16>fp32")
    with (
        fault(model, DOWN, "cublas", call=2),
        fault(model, "model.layers.2.mlp.down_proj", "cublas", call=3, dtype=FLOAT16),
    ):
        found = generate(model, **BOTH_ROWS)
    events = report(model).events
    assert [(event.step, event.before, event.after) for event in events] == [
        (2, BFLOAT16, FLOAT16), (5, FLOAT16, FLOAT32),
    ]  # fmt: skip
    plain = generator()
    Switch(plain, 2, FLOAT16)
    first = plain.generate(**BOTH_ROWS, max_new_tokens=5, do_sample=False)
    assert torch.equal(found.tensors[0][:, : first.shape[1]], first)


VLM = {
    "language-model": "model.language_model.layers.1.mlp.down_proj",
    "vision-tower": "model.vision_tower.encoder.layers.0.mlp.fc1",
    "projector": "model.multi_modal_projector.linear_1",  # a plain module, called by `get_image_features`
}


@pytest.mark.parametrize("kind", ["cublas", "nan"])
@pytest.mark.parametrize("part", VLM)
def test_parts_of_a_vision_language_model(part: str, kind: str) -> None:
    """Every part may fail; the prompt is streamed once."""
    torch.manual_seed(0)
    plain = TINY["llava"].make().eval()
    recast(plain, {FP32}, BF16)
    model = guard(copy.deepcopy(plain))
    recast(plain, {BF16}, FP32)
    given = TINY["llava"].inputs()
    narrow = given | {"pixel_values": given["pixel_values"].to(BF16)}
    wanted = plain.generate(**narrow | {"pixel_values": narrow["pixel_values"].float()}, max_new_tokens=5)
    tape = Tape()
    with fault(model, VLM[part], kind) as put:
        found = model.generate(**narrow, max_new_tokens=5, streamer=tape)
    assert put.fired
    assert torch.equal(found, wanted)
    assert (tape.tokens, tape.ends) == (found[0].tolist(), 1)
    (event,) = report(model).events
    assert not event.restarted


@pytest.mark.parametrize("kind", ["cublas", "nan"])
@pytest.mark.parametrize("part", ["encoder.conv1", "encoder.layers.0.fc1", "decoder.layers.0.fc1"])
def test_parts_of_a_speech_model(part: str, kind: str) -> None:
    """Whisper's own `generate` calls encoder and decoder; either may fail."""
    torch.manual_seed(0)
    plain = TINY["whisper"].make().eval()
    plain.generation_config.update(eos_token_id=None, pad_token_id=0)
    recast(plain, {FP32}, BF16)
    model = guard(copy.deepcopy(plain))
    recast(plain, {BF16}, FP32)
    sound = TINY["whisper"].inputs()["input_features"].to(BF16)
    wanted = plain.generate(input_features=sound.float(), max_new_tokens=5)
    with fault(model, f"model.{part}", kind) as put:
        assert torch.equal(model.generate(input_features=sound, max_new_tokens=5), wanted)
    assert put.fired
    assert [event.module for event in report(model).events] == [f"model.{part}"]


@pytest.mark.parametrize("cache_name", ["dynamic", "static", "sliding", "none"])
def test_nan_in_float32(cache_name: str) -> None:
    """A NaN in float32 is handed on, with the cache as far as in a plain model, and is spoken of once."""
    name, options = CACHES[cache_name]
    plain, model = generator(name, FP32), guard(generator(name, FP32))
    with fault(plain, DOWN, "nan", call=3, dtype=FLOAT32):
        wanted = plain.generate(**BOTH_ROWS, **options, max_new_tokens=6, return_dict_in_generate=True)
    with fault(model, DOWN, "nan", call=3, dtype=FLOAT32):
        found = model.generate(**BOTH_ROWS, **options, max_new_tokens=6, return_dict_in_generate=True)
    assert torch.equal(found.sequences, wanted.sequences)
    if cache_name != "none":
        assert int(found.past_key_values.get_seq_length()) == int(wanted.past_key_values.get_seq_length())
    (event,) = report(model).events
    assert (event.kind, event.after, event.module, event.step) == (FailureKind.NONFINITE, None, DOWN, 3)


@cache
def slow_cases() -> tuple[tuple[str, str], ...]:
    """Return strategies by caches."""
    return tuple((strategy, name) for strategy in STRATEGIES for name in CACHES if name not in ("dynamic", "none"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cublas", "nan", "inf", "mismatch"])
@pytest.mark.parametrize(("strategy", "cache_name"), slow_cases())
def test_strategies_by_caches(strategy: str, cache_name: str, kind: str) -> None:
    """Every strategy on every cache that can be had together, in the middle of the text."""
    name, options = CACHES[cache_name]
    module = DOWN if name != "mamba" else "backbone.layers.1.mixer.out_proj"
    options = STRATEGIES[strategy] | options
    try:
        switched(name, 5, options)
    except (ValueError, NotImplementedError, TypeError) as exc:
        pytest.skip(f"transformers has no such pair: {exc}")
    check(name, module, kind, 5, options)
