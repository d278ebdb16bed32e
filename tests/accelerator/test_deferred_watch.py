"""No read of ours: a guarded loop asks a device as often as a plain one, and goes on from the very step that fails."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import accelerate
import pytest
import torch
import transformers
from accelerator.rehearsal import Counts, Rehearsal
from guarding.generators import BOTH_ROWS, DOWN, IDS, NEW_TOKENS, ONE_ROW, generator
from guarding.oracle import Switch
from pairwise import pairwise
from torch import nn
from transformers.generation.utils import DeferredStopCheck

from safe_dtype import FLOAT16, FLOAT32, guard, report
from safe_dtype.errors import StrictModeError
from safe_dtype.testing import fault

FP16, FP32 = torch.float16, torch.float32
SAMPLED = {"do_sample": True, "temperature": 1.5, "top_k": 0}
STATIC = {"cache_implementation": "static", "disable_compile": True}
FOUR_ROWS = {"input_ids": IDS.repeat(2, 1), "attention_mask": torch.ones_like(IDS.repeat(2, 1))}

# By name: the architecture, how it generates, and what it takes beyond a plain one: reads a generation, operations of the
# device a token.
LOOPS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "greedy": ("qwen3", ONE_ROW, 1, 4),
    "sampling": ("qwen3", ONE_ROW | SAMPLED, 1, 5),
    "padded-batch": ("qwen3", BOTH_ROWS, 1, 6),
    "sampled-batch": ("qwen3", BOTH_ROWS | SAMPLED | {"num_return_sequences": 2}, 1, 7),
    "processors": (
        "qwen3",
        BOTH_ROWS | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 2},
        1,
        6,
    ),
    "streamer": ("qwen3", ONE_ROW | SAMPLED | {"streamer": True}, 1, 5),
    "tokens-alone": ("qwen3", BOTH_ROWS | SAMPLED | {"return_dict_in_generate": False}, 1, 7),
    "static": ("qwen3", ONE_ROW | STATIC, 2, 5),  # and once how far its layers are filled
    "no-cache": ("qwen3", BOTH_ROWS | {"use_cache": False}, 1, 6),
    "chunked-prefill": ("qwen3", BOTH_ROWS | {"prefill_chunk_size": 2}, 4, 6),  # and once for each chunk
    "sliding": ("mistral", BOTH_ROWS, 1, 6),
    "static-sliding": ("gemma3", BOTH_ROWS | STATIC, 2, 13),
    "states": ("mamba", ONE_ROW | SAMPLED, 1, 11),
    "encoder-decoder": ("t5", BOTH_ROWS, 2, 6),  # and once for the encoder
}
MOMENTS = {"prefill": 0, "first": 1, "middle": 5, "last": NEW_TOKENS - 1}
MODULES = {"mamba": "backbone.layers.1.mixer.out_proj", "t5": "decoder.block.1.layer.2.DenseReluDense.wi"}


@dataclass(frozen=True)
class Made:
    """What a generation gave: tensors by name, what was streamed, and the random state that it left."""

    tensors: dict[str, torch.Tensor]
    streamed: list[Any]
    random: torch.Tensor

    def differs(self, other: Made) -> list[str]:
        """Return the names of what is not the same, bit for bit."""
        names = self.tensors.keys() | other.tensors.keys()
        differing = [
            name for name in sorted(names)
            if name not in self.tensors or name not in other.tensors
            or self.tensors[name].dtype != other.tensors[name].dtype
            or not torch.equal(self.tensors[name], other.tensors[name])
        ]  # fmt: skip
        differing += ["streamed"] * (self.streamed != other.streamed)
        return differing + ["random"] * (not torch.equal(self.random, other.random))


class Rolls:
    """A streamer that keeps what it gets, one roll of tokens a time."""

    def __init__(self) -> None:
        self.rolls: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the tokens of all rows."""
        self.rolls.append(value.flatten().tolist())

    def end(self) -> None:
        """Take the end."""
        self.rolls.append("end")


def generate(model: Any, rehearsal: Rehearsal, **options: Any) -> Made:
    """Generate on the device from a seed with everything returned."""
    torch.manual_seed(1)
    where = rehearsal.device()
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True} | options
    options = {name: one.to(where) if isinstance(one, torch.Tensor) else one for name, one in options.items()}
    streamer = Rolls() if options.pop("streamer", False) else None
    if options["return_dict_in_generate"]:
        options |= {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    output = model.generate(**options, streamer=streamer)
    tensors = {} if isinstance(output, dict) else {"sequences": output.cpu()}
    if isinstance(output, dict):
        _collect(tensors, "", [(name, one) for name, one in output.items() if name != "past_key_values"])
    return Made(tensors, streamer.rolls if streamer is not None else [], rehearsal.backend.get_rng_state(where))


def _collect(tensors: dict[str, torch.Tensor], path: str, items: Any) -> None:
    for name, item in items:
        if isinstance(item, torch.Tensor):
            tensors[f"{path}{name}"] = item.cpu()
        elif item is not None:
            _collect(tensors, f"{path}{name}.", enumerate(item))


@cache
def on_the_host(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model of this architecture; each test takes copies of it."""
    model = generator(name, dtype)
    model.generation_config.return_dict_in_generate = None
    return model


def on_the_device(name: str, rehearsal: Rehearsal, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model of this architecture on the first device."""
    return copy.deepcopy(on_the_host(name, dtype)).to(rehearsal.device())


_switched: dict[Any, Made] = {}


def switched(loop: str, call: int, rehearsal: Rehearsal) -> Made:
    """Return what the plain model gives that is brought to float32 by hand at its call number `call`."""
    if (loop, call) not in _switched:
        name, options, *_ = LOOPS[loop]
        model = on_the_device(name, rehearsal)
        Switch(model, call, FLOAT32)
        _switched[loop, call] = generate(model, rehearsal, **options)
    return _switched[loop, call]


def counts(model: Any, rehearsal: Rehearsal, tokens: int, options: dict[str, Any]) -> Counts:
    """Return what the device counts while so many tokens are generated."""
    with rehearsal.counting() as counting:
        generate(model, rehearsal, **options | {"max_new_tokens": tokens})
    # Taking the results to the host is none of the loop's, and the same for both.
    return counting.counts


@pytest.mark.parametrize("loop", LOOPS)
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


def test_a_loop_that_stops_one_step_late(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers learns late that it should stop, as on mps, the step that it has run ahead is taken back too."""

    def is_supported(device: Any, cache: Any, cache_is_returned: bool, is_assistant: bool) -> bool:
        return not is_assistant and (cache is None or cache.is_croppable or not cache_is_returned)

    monkeypatch.setattr(DeferredStopCheck, "is_supported", staticmethod(is_supported))
    for options in (FOUR_ROWS | {"streamer": True}, ONE_ROW | SAMPLED | {"eos_token_id": 12, "pad_token_id": 0}):
        options = options | {"return_dict_in_generate": False}
        guarded = guard(on_the_device("qwen3", rehearsal))
        generate(guarded, rehearsal, **options)
        plain = on_the_device("qwen3", rehearsal)
        a_token, with_guard = (
            counts(one, rehearsal, 9, options) - counts(one, rehearsal, 3, options) for one in (plain, guarded)
        )
        assert with_guard.syncs == a_token.syncs
        for call, kind in ((0, "nan"), (4, "nan"), (5, "cublas"), (NEW_TOKENS - 1, "nan")):
            plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
            Switch(plain, call, FLOAT32)
            with fault(model, DOWN, kind, call=call) as put:
                made = generate(model, rehearsal, **options)
            assert put.fired
            assert made.differs(generate(plain, rehearsal, **options)) == []


def test_a_late_loop_over_layers_that_slide(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt has failed when the step after it has run: the cache is empty again, and known to be."""
    monkeypatch.setattr(DeferredStopCheck, "is_supported", staticmethod(lambda *_, **__: True))
    options = ONE_ROW | SAMPLED | {"return_dict_in_generate": False}
    plain, model = on_the_device("mistral", rehearsal), guard(on_the_device("mistral", rehearsal))
    generate(model, rehearsal, **options)
    Switch(plain, 0, FLOAT32)
    with fault(model, DOWN, "nan", call=0):
        made = generate(model, rehearsal, **options)
    assert made.differs(generate(plain, rehearsal, **options)) == []
    assert [event.step for event in report(model).events] == [0]


def test_both_steps_of_a_late_loop_may_fail(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the step that runs ahead of one whose numbers were none: the earlier one is gone back to."""
    monkeypatch.setattr(DeferredStopCheck, "is_supported", staticmethod(lambda *_, **__: True))
    options = ONE_ROW | SAMPLED | {"return_dict_in_generate": False}
    plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
    generate(model, rehearsal, **options)
    Switch(plain, 4, FLOAT32)
    with fault(model, DOWN, "nan", call=4), fault(model, "model.layers.0.mlp.down_proj", "cublas", call=5):
        made = generate(model, rehearsal, **options)
    assert made.differs(generate(plain, rehearsal, **options)) == []
    assert [event.step for event in report(model).events] == [4]


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
