"""No read of ours: a guarded loop asks a device as often as a plain one, and goes on from the very step that fails."""

from __future__ import annotations

import copy
from typing import Any

import accelerate
import pytest
import torch
import transformers
from accelerator.loops import (
    FOUR_ROWS,
    FP32,
    LOOPS,
    MODULES,
    MOMENTS,
    SAMPLED,
    Rolls,
    counts,
    generate,
    on_the_device,
    on_the_host,
    switched,
)
from accelerator.rehearsal import Rehearsal
from guarding.generators import BOTH_ROWS, DOWN, IDS, NEW_TOKENS, ONE_ROW
from guarding.oracle import Switch
from pairwise import pairwise
from torch import nn

from safe_dtype import FLOAT16, FLOAT32, guard, report
from safe_dtype.errors import StrictModeError
from safe_dtype.testing import fault

# Each of them counts as a simpler one does, with one thing more of transformers' own.
VARIATIONS = ("sampled-batch", "processors", "streamer", "tokens-alone", "chunked-prefill", "static-sliding")


@pytest.mark.parametrize(
    "loop", [pytest.param(loop, marks=pytest.mark.slow if loop in VARIATIONS else ()) for loop in LOOPS]
)
def test_a_token_takes_no_read_of_ours(loop: str, rehearsal: Rehearsal) -> None:
    """Guarded and plain wait equally often for a token, and give the same; a generation reads a verdict once."""
    name, options, reads, operations = LOOPS[loop]
    plain, guarded = on_the_device(name, rehearsal), guard(on_the_device(name, rehearsal))
    assert generate(guarded, rehearsal, **options).differs(generate(plain, rehearsal, **options)) == []
    (short, long), (guarded_short, guarded_long) = (
        [counts(model, rehearsal, tokens, options) for tokens in (3, 9)] for model in (plain, guarded)
    )
    a_token, with_guard = long - short, guarded_long - guarded_short
    assert with_guard.syncs == a_token.syncs
    assert with_guard.uploads == a_token.uploads
    assert guarded_long.syncs - long.syncs == reads
    assert (with_guard.kernels - a_token.kernels) / 6 == operations


def test_plain_asks_once_a_token(rehearsal: Rehearsal) -> None:
    """What a guarded model is held to is one synchronization a token."""
    model = guard(on_the_device("qwen3", rehearsal))
    options = ONE_ROW | {"return_dict_in_generate": False}
    generate(model, rehearsal, **options)
    assert (counts(model, rehearsal, 9, options) - counts(model, rehearsal, 3, options)).syncs == 6


@pytest.mark.parametrize(("loop", "moment", "kind"), pairwise(LOOPS, MOMENTS, ["nan", "inf", "cublas"]))
def test_goes_on_from_the_step_that_failed(loop: str, moment: str, kind: str, rehearsal: Rehearsal) -> None:
    """Tokens, scores, streams and random numbers are those of the switch made by hand at that step."""
    (name, options, *_), call = LOOPS[loop], MOMENTS[moment]
    model = guard(on_the_device(name, rehearsal))
    generate(model, rehearsal, **options)  # what it writes into is known from now on
    with fault(model, MODULES.get(name, DOWN), kind, call=call) as put:
        made = generate(model, rehearsal, **options)
    assert put.fired
    assert made.differs(switched(loop, call, rehearsal)) == []
    (event,) = report(model).events
    assert (event.step, event.after, event.restarted) == (call, FLOAT32, False)


def test_rows_that_have_ended_stay_so(rehearsal: Rehearsal) -> None:
    """A loop that is begun again pads the rows that had ended, and ends with the last of the others."""
    options = FOUR_ROWS | SAMPLED | {"temperature": 1.2, "pad_token_id": 0, "streamer": True}
    free = generate(on_the_device("qwen3", rehearsal), rehearsal, **options).tensors["sequences"]
    begin = FOUR_ROWS["input_ids"].shape[1]
    options["eos_token_id"] = [int(free[0, begin + 1]), int(free[1, begin + 3])]  # two rows end, one after the other
    for call in (0, 1, 2, 3, 4, 7):
        plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
        Switch(plain, call, FLOAT32)
        with fault(model, DOWN, "nan", call=call) as put:
            made = generate(model, rehearsal, **options)
        assert put.fired
        assert made.differs(generate(plain, rehearsal, **options)) == []


def test_the_step_that_ends_the_generation_may_fail(rehearsal: Rehearsal) -> None:
    """Where the token that failed would have been the end, or becomes it, the generation ends there all the same."""
    options = ONE_ROW | {"streamer": True, "pad_token_id": 0}
    for call in (2, 4):
        plain = on_the_device("qwen3", rehearsal)
        Switch(plain, call, FLOAT32)
        free = generate(plain, rehearsal, **options).tensors["sequences"][0]
        ends = options | {"eos_token_id": int(free[ONE_ROW["input_ids"].shape[1] + call])}
        plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
        Switch(plain, call, FLOAT32)
        with fault(model, DOWN, "nan", call=call):
            made = generate(model, rehearsal, **ends)
        assert made.differs(generate(plain, rehearsal, **ends)) == []
        assert made.streamed[-1] == "end"


@pytest.mark.parametrize(("first", "second"), [("nan", "nan"), ("cublas", "nan"), ("nan", "cublas")])
def test_two_failures_in_a_row(first: str, second: str, rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the next dtype too, at that step or the one after, comes out as if it had been looked at at once."""
    for call in (0, 1):
        made = []
        for is_free in (False, True):
            monkeypatch.setattr(
                "safe_dtype.guarding.deferred.reasons.is_read_free", lambda _, is_free=is_free: is_free
            )
            model = guard(on_the_device("qwen3", rehearsal), policy="ladder=bf16>fp16>fp32")
            with (
                fault(model, DOWN, first, call=2),
                fault(model, "model.layers.2.mlp.down_proj", second, call=call, dtype=FLOAT16),
            ):
                made.append(generate(model, rehearsal, **BOTH_ROWS))
            steps = [(event.step, event.before, event.after) for event in report(model).events]
            assert steps[0][0] == 2
            assert steps[-1][2] == FLOAT32
        assert made[0].differs(made[1]) == []


def test_a_step_that_cannot_be_brought_back(rehearsal: Rehearsal) -> None:
    """Where a step has written over what it was given, the generation begins anew and looks at each step at once."""
    calls = []

    def overwrite(_module: nn.Module, args: tuple[torch.Tensor]) -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            args[0].fill_(7)  # the tokens of the step that fails below

    model, plain = guard(on_the_device("qwen3", rehearsal)), on_the_device("qwen3", rehearsal).float()
    generate(model, rehearsal, **ONE_ROW)  # what it writes into is known from now on
    model.model.embed_tokens.register_forward_pre_hook(overwrite)
    with fault(model, DOWN, "nan", call=2) as put:
        made = generate(model, rehearsal, **ONE_ROW)
    assert put.fired
    (event,) = report(model).events
    assert (event.step, event.after) == (0, FLOAT32)  # where it fails again
    assert made.differs(generate(plain, rehearsal, **ONE_ROW)) == []


def test_over_two_devices(rehearsal: Rehearsal) -> None:
    """A model in two halves is watched with no read of ours, and goes on from the step that failed."""

    def halves() -> Any:
        model = copy.deepcopy(on_the_host("qwen3"))
        first, second = rehearsal.device(0), rehearsal.device(1)
        names = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0", "lm_head"), first)
        names |= dict.fromkeys(("model.layers.1", "model.layers.2", "model.norm"), second)
        return accelerate.dispatch_model(model, {name: device.index for name, device in names.items()})

    options = BOTH_ROWS | SAMPLED
    plain, model = halves(), guard(halves())
    assert generate(model, rehearsal, **options).differs(generate(plain, rehearsal, **options)) == []
    a_token, with_guard = (
        counts(one, rehearsal, 9, options) - counts(one, rehearsal, 3, options) for one in (plain, model)
    )
    assert with_guard.syncs == a_token.syncs
    Switch(plain, 4, FLOAT32)
    with fault(model, DOWN, "nan", call=4):
        made = generate(model, rehearsal, **options)
    assert made.differs(generate(plain, rehearsal, **options)) == []
    (event,) = report(model).events
    assert event.step == 4


def test_pinned_values_in_float16(rehearsal: Rehearsal) -> None:
    """The blocks that are watched in float16 go into the same flag: no read a token, and the step that is pinned is found."""
    block = "decoder.block.1"
    # `half` leaves nothing in float32: such a T5 clamps.
    plain, model = on_the_device("t5", rehearsal, FP32).half(), guard(on_the_device("t5", rehearsal, FP32).half())
    assert generate(model, rehearsal, **BOTH_ROWS).differs(generate(plain, rehearsal, **BOTH_ROWS)) == []
    a_token, with_guard = (
        counts(one, rehearsal, 9, BOTH_ROWS) - counts(one, rehearsal, 3, BOTH_ROWS) for one in (plain, model)
    )
    assert with_guard.syncs == a_token.syncs
    guard(model, policy="strict")  # of the remedies the first takes seconds
    with fault(model, block, "saturate", dtype=FLOAT16, call=4), pytest.raises(StrictModeError, match=block):
        generate(model, rehearsal, **BOTH_ROWS)


def test_no_end_where_nothing_is_cured(rehearsal: Rehearsal) -> None:
    """NaN in float32 is handed on, and what comes after it is looked at at once: no step of it runs twice."""
    plain, model = on_the_device("qwen3", rehearsal, FP32), guard(on_the_device("qwen3", rehearsal, FP32))
    generate(model, rehearsal, **ONE_ROW)
    runs = []
    with fault(plain, DOWN, "nan", dtype=FLOAT32, call=3):
        wanted = generate(plain, rehearsal, **ONE_ROW).tensors["sequences"]
    with fault(model, DOWN, "nan", dtype=FLOAT32, call=3):
        model.register_forward_hook(lambda *_: runs.append(1))
        made = generate(model, rehearsal, **ONE_ROW).tensors["sequences"]
    assert torch.equal(made, wanted)
    assert len(report(model).events) == 1
    assert len(runs) <= NEW_TOKENS + 6


def test_strict_mode_changes_nothing(rehearsal: Rehearsal) -> None:
    """The error comes from the step that failed, with the random numbers of the time before it."""
    model, streamer = guard(on_the_device("qwen3", rehearsal), policy="strict"), Rolls()
    where = rehearsal.device()
    with fault(model, DOWN, "nan", call=3), pytest.raises(StrictModeError, match="nonfinite"):
        model.generate(IDS[1:].to(where), max_new_tokens=6, streamer=streamer, **SAMPLED)
    assert len(streamer.rolls) == 1 + 3  # the prompt and the tokens before
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


class Counting(transformers.LogitsProcessor):
    """A processor of the caller's own, which counts."""

    calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Count."""
        self.calls += 1
        return scores


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"logits_processor": transformers.LogitsProcessorList([Counting()])}, id="own-processor"),
        pytest.param({"num_beams": 2}, id="beams"),
        pytest.param({"prompt_lookup_num_tokens": 2}, id="prompt-lookup"),
        pytest.param({"guidance_scale": 1.5}, id="guidance"),
    ],
)
def test_what_is_looked_at_at_once(options: dict[str, Any], rehearsal: Rehearsal) -> None:
    """What must not run twice does not: such a loop is watched step by step, and goes on as everywhere."""
    plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
    Switch(plain, 4, FLOAT32)
    with fault(model, DOWN, "nan", call=4) as put:
        made = generate(model, rehearsal, **ONE_ROW | options)
    assert put.fired
    for processor in options.get("logits_processor", ()):
        assert processor.calls == NEW_TOKENS
    assert made.differs(generate(plain, rehearsal, **ONE_ROW | options)) == []


class Keeping(transformers.Qwen3ForCausalLM):
    """A model that keeps a list of its steps beside the tokens, as Parakeet."""

    def _update_model_kwargs_for_generation(self, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.lengths.append(outputs.past_key_values.get_seq_length())
        return super()._update_model_kwargs_for_generation(outputs, *args, **kwargs)


@pytest.mark.parametrize("call", [0, 4, NEW_TOKENS - 1])
def test_a_model_that_counts_its_steps(call: int, rehearsal: Rehearsal) -> None:
    """No step is counted in twice, where nobody knows what comes of that."""
    model = guard(on_the_device("qwen3", rehearsal))
    generate(model, rehearsal, **ONE_ROW)
    model.__class__, model.lengths = Keeping, []
    with fault(model, DOWN, "nan", call=call) as put:
        generate(model, rehearsal, **ONE_ROW)
    assert put.fired
    begin = ONE_ROW["input_ids"].shape[1]
    assert model.lengths == [*range(begin, begin + NEW_TOKENS)]


class Asking(Rolls):
    """A streamer that asks the model something at each roll of tokens."""

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        super().__init__()
        self.model, self.tokens, self.answers = model, tokens, []

    def put(self, value: torch.Tensor) -> None:
        """Take tokens and ask."""
        super().put(value)
        self.answers.append(self.model(self.tokens).logits.cpu())


@pytest.mark.parametrize("call", [2, 3, 4])
def test_a_streamer_that_calls_the_model(call: int, rehearsal: Rehearsal) -> None:
    """Its calls are none of the loop's: they are looked at at once, and the loop goes on from its own steps."""
    where, made = rehearsal.device(), []
    plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
    generate(model, rehearsal, **ONE_ROW)
    Switch(plain, call, FLOAT32)
    with fault(model, DOWN, "nan", call=call) as put:
        for each in (plain, model):
            streamer = Asking(each, IDS[1:, :4].to(where))
            tokens = each.generate(IDS[1:].to(where), max_new_tokens=4, do_sample=False, streamer=streamer).cpu()
            made.append((tokens, *streamer.answers))
    assert put.fired
    assert [part.dtype for part in made[0]] == [part.dtype for part in made[1]]
    assert all(torch.equal(part, other) for part, other in zip(*made, strict=True))


@pytest.mark.slow  # a compiler follows the model
def test_compiled_decoding(rehearsal: Rehearsal) -> None:
    """A static cache whose steps are compiled costs no read of ours, and a step that failed in the graph is gone back to."""
    options = ONE_ROW | SAMPLED | {
        "cache_implementation": "static", "max_new_tokens": 7,
        "compile_config": transformers.CompileConfig(backend="eager", fullgraph=True, dynamic=False),
    }  # fmt: skip

    class Poison(nn.Linear):
        is_on = False

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            out = super().forward(hidden)
            return out + torch.nan if self.is_on and hidden.dtype == torch.bfloat16 and hidden.shape[1] == 1 else out

    plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
    for one in (plain, model):
        one.set_attn_implementation("eager")  # of the fused one the device has no form to trace
        one._valid_auto_compile_criteria = lambda *_: True  # transformers compiles for cards that it knows
        one.model.layers[1].mlp.down_proj.__class__ = Poison
    assert generate(model, rehearsal, **options).differs(generate(plain, rehearsal, **options)) == []
    a_token, with_guard = (
        counts(one, rehearsal, 6, options) - counts(one, rehearsal, 3, options) for one in (plain, model)
    )
    assert with_guard.syncs == a_token.syncs
    Switch(plain, 1, FLOAT32)
    model.model.layers[1].mlp.down_proj.is_on = True
    plain._valid_auto_compile_criteria = lambda *_: False
    assert generate(model, rehearsal, **options).differs(generate(plain, rehearsal, **options)) == []
    (event,) = report(model).events
    assert event.step == 1
    torch.compiler.reset()
