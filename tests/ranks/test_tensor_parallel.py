"""Tensor parallel generation: a kernel that one rank lacks, and all go on from that step in the next dtype."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed
from transformers.generation.streamers import BaseStreamer

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, Policy, SafeAutoModelForCausalLM, report
from safe_dtype.errors import NoDtypeLeft, StrictModeError
from safe_dtype.models.casting import cast_cache

from .processes import Launch, begin_case, run_ranks

DOWN = Policy(ladder=(BFLOAT16, FLOAT16, FLOAT32))
PROMPT = torch.arange(1, 9)[None]
GREEDY = {"max_new_tokens": 7, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@dataclass(frozen=True)
class Failing:
    """A kernel in the middle of every layer that some ranks lack from one step on."""

    name: str
    step: int = 3
    dtypes: tuple[str, ...] = ("bfloat16",)
    ranks: tuple[int, ...] = (1,)
    gives_nan: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    saved: str = "bfloat16"  # the dtype of the checkpoint


QUICK = [Failing("decode step 3"), Failing("NaN on one rank", step=0, gives_nan=True)]
MORE = [
    Failing("prompt, rank 0", step=0, ranks=(0,)),
    Failing("two dtypes", step=2, dtypes=("bfloat16", "float16")),
    Failing("sampling", step=1, options=(("do_sample", True),)),
    Failing("beams", step=2, options=(("num_beams", 2),)),
    Failing("all ranks", step=2, ranks=(0, 1)),
    Failing("a checkpoint that loading rounds", step=2, saved="float32"),
]
PLACE: dict[str, Any] = {"case": None, "step": 0}
NAMES = {torch.bfloat16: "BFloat16", torch.float16: "Half", torch.float32: "Float"}


@torch.library.custom_op("safe_dtype_tests::silu", mutates_args=())
def silu(values: Tensor) -> Tensor:
    """The activation, from a kernel that a rank may lack."""
    case = PLACE["case"]
    result = nn.functional.silu(values)
    if case is None or PLACE["step"] < case.step or dist.get_rank() not in case.ranks:
        return result
    if str(values.dtype).removeprefix("torch.") not in case.dtypes:
        return result
    if case.gives_nan:
        return result * float("nan")
    raise RuntimeError(f"\"silu_kernel\" not implemented for '{NAMES[values.dtype]}'")


silu.register_fake(torch.empty_like)


class Activation(nn.Module):
    """The kernel as a module."""

    def forward(self, values: Tensor) -> Tensor:
        """Return what it gives."""
        return torch.ops.safe_dtype_tests.silu(values)


def load(folder: Path, dtype: torch.dtype = torch.bfloat16, *, policy: Policy | str | None = None) -> Any:
    """Return this rank's part of the model, with the kernel in it; guarded where there is a policy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of arguments that will be called otherwise
        if policy is None:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, tp_plan="auto").eval()
        else:
            model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=dtype, policy=policy, tp_plan="auto")
    for layer in model.model.layers:
        layer.mlp.act_fn = Activation()
    return model


@contextmanager
def counted(model: Any, case: Failing | None) -> Iterator[None]:
    """Count the steps of the model; the kernel knows the case."""

    def one_more(*_: Any) -> None:
        PLACE["step"] += 1

    PLACE.update(case=case, step=0)
    handle = model.register_forward_hook(one_more)
    try:
        yield
    finally:
        handle.remove()
        PLACE.update(case=None)


def followed_by(model: Any, other: Any, step: int) -> Any:
    """Return `model`, whose steps are made by `other` from one on, with the cache cast to its dtype."""
    own = model.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if PLACE["step"] < step:
            return own(*args, **kwargs)
        cast_cache(kwargs["past_key_values"], {torch.bfloat16}, other.dtype)
        return other(*args, **kwargs)

    model.forward = forward
    return model


def generate(model: Any, case: Failing | None, **options: Any) -> Any:
    """Return what the model says to the prompt."""
    set_seed(3)
    with counted(model, case), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(PROMPT, **{**GREEDY, **options})


def is_same(output: Any, expected: Any) -> bool:
    """Whether tokens and logits are the same bits."""
    return torch.equal(output.sequences, expected.sequences) and all(map(torch.equal, output.logits, expected.logits))


def everything(folder: Path) -> dict[str, Any]:
    """Return what this rank has seen, by case."""
    results: dict[str, Any] = {}
    begin_case("nothing fails")
    saved = folder / "bfloat16"
    results["nothing fails"] = is_same(generate(load(saved, policy=DOWN), None), generate(load(saved), None))
    for special in (no_messages, streamed):
        begin_case(special.__name__)
        results[special.__name__] = special(saved)
    return {**results, **go_on(folder, QUICK)}


def more(folder: Path) -> dict[str, Any]:
    """Return what this rank has seen of the rarer cases."""
    results = go_on(folder, MORE)
    saved = folder / "bfloat16"
    begin_case("nothing fails")
    results["nothing fails"] = [
        is_same(generate(load(saved, dtype, policy=DOWN), None), generate(load(saved, dtype), None))
        for dtype in (torch.float16, torch.float32)
    ]
    for special in (strict, nothing_left, own_nan, for_good):
        begin_case(special.__name__)
        results[special.__name__] = special(saved)
    return results


def go_on(folder: Path, cases: list[Failing]) -> dict[str, Any]:
    """Return what this rank has seen where a kernel failed, by case."""
    results = {}
    for case in cases:
        begin_case(case.name)
        results[case.name] = goes_on(folder, case)
    return results


def goes_on(folder: Path, case: Failing) -> tuple[str, bool, list[tuple[int, str, str]]]:
    """Return the dtype at the end, whether the output is that of a model switched by hand at that step, and the events."""
    folder = folder / case.saved
    model = load(folder, policy=DOWN)
    output = generate(model, case, **dict(case.options))
    plain = followed_by(load(folder), load(folder, model.dtype), case.step)
    expected = generate(plain, None, **dict(case.options))
    events = [(event.step, event.module or "", event.message) for event in report(model).events]
    return str(model.dtype), is_same(output, expected), events


class Collectives(TorchDispatchMode):
    """Counts the collectives that run in it, by name."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one."""
        if any(hasattr(kind, "_local_tensor") for kind in types):
            return NotImplemented
        if "c10d" in func.namespace:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def no_messages(folder: Path) -> list[dict[str, int]]:
    """Return the collectives of a plain generation, and those of a guarded one."""
    counts = []
    for model in (load(folder), load(folder, policy=DOWN)):
        with Collectives() as collectives:
            generate(model, None)
        counts.append(dict(collectives.counts))
    return counts


class Tape(BaseStreamer):
    """What was streamed."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        """Note it."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Note nothing."""


def streamed(folder: Path) -> bool:
    """Whether each token came once; one rank alone streams."""
    tape = Tape() if dist.get_rank() == 0 else None
    output = generate(load(folder, policy=DOWN), QUICK[0], streamer=tape)
    return tape is None or tape.tokens == output.sequences[0].tolist()


def strict(folder: Path) -> tuple[str, str]:
    """Return what is raised in strict mode, on both ranks, and the dtype of the model after it."""
    model = load(folder, policy="strict")
    with pytest.raises(StrictModeError) as raised:
        generate(model, QUICK[0])
    return str(raised.value).partition(":")[0], str(model.dtype)


def nothing_left(folder: Path) -> str:
    """Return what is raised where one rank lacks the kernel in every dtype."""
    model = load(folder, policy=DOWN)
    with pytest.raises(NoDtypeLeft) as raised:
        generate(model, Failing("", dtypes=("bfloat16", "float16", "float32")))
    return raised.value.failure


def own_nan(folder: Path) -> tuple[bool, str]:
    """Return whether NaN that float32 gives as well is handed on, and the dtype of the model after it."""
    model = load(folder, policy=DOWN)
    case = Failing("", step=0, dtypes=("bfloat16", "float32"), gives_nan=True)
    output = generate(model, case)
    return bool(output.logits[0].isnan().any()), str(model.dtype)


def for_good(folder: Path) -> tuple[list[int], list[bool]]:
    """Return the steps of all events of two generations, and whether the second one is that of the next dtype."""
    model = load(folder, policy=DOWN)
    generate(model, QUICK[0])
    second = generate(model, QUICK[0])
    return [event.step for event in report(model).events], [
        is_same(second, generate(load(folder, torch.float16), None))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, saved in two dtypes."""
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(hidden_size=32, intermediate_size=64, vocab_size=96, max_position_embeddings=64, **heads)
    path = tmp_path_factory.mktemp("llama")
    model = LlamaForCausalLM(config)
    model.save_pretrained(path / "float32")
    model.to(torch.bfloat16).save_pretrained(path / "bfloat16")
    return path


@pytest.fixture(scope="module")
def seen_more(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks has seen of the rarer cases."""
    return run_ranks(more, 2, folder, launch=Launch(seconds=150))


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks has seen."""
    return run_ranks(everything, 2, folder)


Seen = list[dict[str, Any]]


def test_where_nothing_fails_it_is_the_plain_model(seen: Seen) -> None:
    """Tokens and logits are the same bits."""
    assert [of_rank["nothing fails"] for of_rank in seen] == [True, True]


def all_went_on(seen: Seen, case: Failing) -> None:
    """Both ranks ended in the next dtype, with the bits of a model that was switched there by hand."""
    last = "float32" if case.gives_nan else ("float16", "float32")[len(case.dtypes) - 1]
    for of_rank in seen:
        dtype, same, events = of_rank[case.name]
        assert (dtype, same) == (f"torch.{last}", True)
        assert {step for step, *_ in events} == {case.step}
        assert events == seen[0][case.name][2]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_all_go_on_from_the_step_that_failed(seen: Seen, case: Failing) -> None:
    """An exception of one rank, and NaN of one rank: nothing is made twice, and no rank waits."""
    all_went_on(seen, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
def test_all_go_on_in_every_strategy(seen_more: Seen, case: Failing) -> None:
    """From the prompt or later, greedy, sampled or in beams, once or twice, from the weights of the checkpoint."""
    all_went_on(seen_more, case)


@pytest.mark.slow
def test_where_nothing_fails_in_other_dtypes(seen_more: Seen) -> None:
    """In float16 and float32 too it is the plain model."""
    assert [of_rank["nothing fails"] for of_rank in seen_more] == [[True, True]] * 2


def test_the_event_tells_where(seen: Seen) -> None:
    """On every rank: which one has failed, in which module, and why."""
    for of_rank in seen:
        ((_, module, message),) = of_rank["decode step 3"][2]
        assert module == "model.layers.0.mlp.act_fn"
        assert message == "rank 1: \"silu_kernel\" not implemented for 'BFloat16'"


def test_no_message_is_added_where_nothing_fails(seen: Seen) -> None:
    """As many collectives as in a plain generation."""
    plain, guarded = seen[0]["no_messages"]
    assert plain == guarded
    assert sum(plain.values()) > 7


def test_nothing_is_streamed_twice(seen: Seen) -> None:
    """The generation goes on, it does not begin anew."""
    assert [of_rank["streamed"] for of_rank in seen] == [True, True]


@pytest.mark.slow
def test_strict_mode_ends_it_on_all(seen_more: Seen) -> None:
    """Nothing is changed on any rank."""
    assert [of_rank["strict"][1] for of_rank in seen_more] == ["torch.bfloat16"] * 2


@pytest.mark.slow
def test_without_a_dtype_it_ends_on_all(seen_more: Seen) -> None:
    """Both ranks get the error of the one."""
    assert all("rank 1" in of_rank["nothing_left"] for of_rank in seen_more)


@pytest.mark.slow
def test_nan_of_the_model_itself_is_handed_on(seen_more: Seen) -> None:
    """Nobody ends, and nobody waits."""
    assert [of_rank["own_nan"] for of_rank in seen_more] == [(True, "torch.float32")] * 2


@pytest.mark.slow
def test_the_next_generation_begins_there(seen_more: Seen) -> None:
    """One event, and then a model in the next dtype."""
    assert [of_rank["for_good"] for of_rank in seen_more] == [([3], [True])] * 2
