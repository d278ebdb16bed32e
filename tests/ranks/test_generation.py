"""Copies of one model that generate on several ranks: all end in one dtype, and nobody waits who need not."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from . import generate_plainly
from .generation_trial import save_checkpoint
from .processes import Launch, begin_case, free_port, outcomes_of, run_program, run_ranks

DOWN = "model.layers.1.mlp.down_proj"
NEW_TOKENS = 8
LADDER = "ladder=bf16>fp16>fp32"


@dataclass(frozen=True)
class Copy:
    """How the copy of one rank stands."""

    dtype: str
    weights: str  # a digest
    is_clean: bool  # the latest tokens are those of a run that began in that dtype


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model in float32: every copy in 16 bit is rounded from it."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    save_checkpoint(folder)
    return folder


def load(source: str) -> Any:
    """Return a guarded copy in bfloat16."""
    from safe_dtype import SafeAutoModel

    return SafeAutoModel.from_pretrained(source, dtype="bfloat16", policy=LADDER)


def generate(model: Any, **options: Any) -> torch.Tensor:
    """Return what a model makes of the prompt of this rank, which no other rank has."""
    rank = dist.get_rank()
    torch.manual_seed(5 + rank)
    tokens: torch.Tensor = model.generate(
        torch.arange(1 + 3 * rank, 7 + 4 * rank)[None], max_new_tokens=NEW_TOKENS, **{"do_sample": True, **options}
    )
    return tokens


def copy_of(model: Any, source: str, tokens: torch.Tensor, **options: Any) -> Copy:
    """Return how a copy stands after it has made `tokens`."""
    import transformers as tf

    plain = tf.LlamaForCausalLM.from_pretrained(source, dtype=model.dtype).eval()
    digest = hashlib.sha256(b"".join(one.detach().view(torch.uint8).numpy().tobytes() for one in model.parameters()))
    is_clean = torch.equal(generate(plain, **options), tokens)
    return Copy(str(model.dtype).removeprefix("torch."), digest.hexdigest()[:12], is_clean)


def failing(model: Any, rank: int, kind: str, dtype: str, call: int = 0) -> Any:
    """Have the copy of one rank fail in a dtype; a context."""
    from safe_dtype.facts import dtype_named
    from safe_dtype.testing import fault

    return fault(model, DOWN, kind, dtype=dtype_named(dtype), call=call) if dist.get_rank() == rank else nullcontext()


def in_lockstep(source: str) -> dict[str, Any]:
    """Cases of ranks that all generate equally often."""
    from safe_dtype.errors import RemoteFailure
    from safe_dtype.ranks import agreeing

    endings: dict[str, Any] = {}
    begin_case("two failures in one generation")
    model = agreeing(load(source))
    with failing(model, 1, "not_implemented", "bfloat16", call=4), failing(model, 2, "nan", "float16", call=2):
        endings["two failures"] = copy_of(model, source, generate(model))

    begin_case("a streamer")
    model, tape = agreeing(load(source)), Tape()
    with failing(model, 1, "not_implemented", "bfloat16", call=4):
        tokens = generate(model, streamer=tape)
    endings["streamed"] = (tape.tokens == tokens[0].tolist(), str(model.dtype))
    endings["after the stream"] = copy_of(model, source, generate(model))

    begin_case("an error that no dtype cures")
    model = agreeing(load(source))
    try:
        with failing(model, 1, "shape", "bfloat16", call=2):
            generate(model)
        endings["foreign"] = "went on"
    except RemoteFailure as exc:
        endings["foreign"] = (exc.rank, "shapes cannot be multiplied" in exc.problem)
    except RuntimeError as exc:
        endings["foreign"] = type(exc).__name__
    endings["after the error"] = copy_of(model, source, generate(model))
    return endings


def announcing(source: str) -> dict[str, Any]:
    """Cases of ranks that generate as often as they like."""
    from safe_dtype import report

    endings: dict[str, Any] = {}
    rank = dist.get_rank()
    begin_case("only one rank generates")
    model = load(source)
    with failing(model, 1, "not_implemented", "bfloat16", call=4), failing(model, 2, "nan", "float16", call=2):
        if rank == 1:
            generate(model)
            generate(model)
        dist.barrier()
        endings["before"] = str(model.dtype)
        if rank == 2:  # follows to float16, and fails there
            generate(model)
        dist.barrier()
        endings["after"] = copy_of(model, source, generate(model))
    endings["events"] = [event.message for event in report(model).events]

    begin_case("another model")
    other = load(source)
    other.resize_token_embeddings(120)
    generate(other)
    endings["another"] = str(other.dtype)

    begin_case("a rank that died while it announced")
    late = load(source)
    board()
    dist.barrier()
    with failing(late, 0, "not_implemented", "bfloat16"):
        if rank == 0:
            generate(late)
    dist.barrier()
    started = time.monotonic()
    generate(late)
    endings["late"] = (str(late.dtype), time.monotonic() - started < 10)
    return endings


def board() -> None:
    """Count an announcement that nobody writes any more, on rank 0."""
    store = dist.PrefixStore("safe_dtype/failures", dist.distributed_c10d._get_default_store())
    if dist.get_rank() == 0:
        store.add("count", 1)


class Tape:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take tokens."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Take the end."""


def test_ranks_in_lockstep(checkpoint: str) -> None:
    """Every answer comes from the dtype that no rank has failed in; an error that no dtype cures ends it on all ranks."""
    ranks = run_ranks(in_lockstep, 3, checkpoint)
    two = [rank["two failures"] for rank in ranks]
    assert [copy.dtype for copy in two] == ["float32"] * 3
    assert len({copy.weights for copy in two}) == 1
    assert all(copy.is_clean for copy in two)
    assert [rank["streamed"] for rank in ranks] == [(True, "torch.float16")] * 3
    assert [(one.dtype, one.is_clean) for one in (rank["after the stream"] for rank in ranks)] == [
        ("float16", True)
    ] * 3
    assert len({rank["after the stream"].weights for rank in ranks}) == 1
    assert [rank["foreign"] for rank in ranks] == [(1, True), "RuntimeError", (1, True)]
    assert [(one.dtype, one.is_clean) for one in (rank["after the error"] for rank in ranks)] == [
        ("bfloat16", True)
    ] * 3


def test_ranks_that_announce(checkpoint: str) -> None:
    """A failure is heard at the next generation of each rank, however many each makes, and nobody waits."""
    ranks = run_ranks(announcing, 3, checkpoint)
    assert [rank["before"] for rank in ranks] == ["torch.bfloat16", "torch.float16", "torch.bfloat16"]
    after = [rank["after"] for rank in ranks]
    assert [(one.dtype, one.is_clean) for one in after] == [("float32", True)] * 3
    assert len({one.weights for one in after}) == 1
    assert [len(rank["events"]) for rank in ranks] == [1, 2, 2]
    assert ranks[0]["events"][0].startswith("rank 1: ")
    assert "not implemented for 'BFloat16'" in ranks[0]["events"][0]
    assert [rank["another"] for rank in ranks] == ["torch.bfloat16"] * 3
    assert [rank["late"] for rank in ranks] == [("torch.float32", True)] * 3


def losing_a_rank(source: str, victim: int) -> None:
    """One rank is killed in the middle of a generation."""
    from safe_dtype.errors import PeerLostError
    from safe_dtype.ranks import agreeing

    rank = dist.get_rank()
    begin_case("without a vote")
    model, later = load(source), load(source)
    generate(model)
    agreeing(later, seconds=20)
    dist.barrier()
    if rank == victim:
        later.model.layers[1].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    else:
        time.sleep(1)
        begin_case("with a vote")
    started = time.monotonic()
    with pytest.raises(PeerLostError):
        generate(later)
    assert time.monotonic() - started < 25
    for _ in range(3):
        generate(model)
    os._exit(76)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["with-the-store", "without"])
def test_a_rank_that_dies(checkpoint: str, victim: int) -> None:
    """In lockstep the others end with a lost peer at once; those that only announce go on."""
    outcomes = outcomes_of(losing_a_rank, 3, checkpoint, victim)
    assert [outcome.status for outcome in outcomes] == [-9 if rank == victim else 76 for rank in range(3)], "\n".join(
        map(str, outcomes)
    )


def outlives_rank_0(source: str) -> float:
    """Generate for the first time when rank 0 has ended, and the store of the job with it; return the seconds."""
    dist.init_process_group("gloo")
    model = load(source)
    dist.barrier()
    if dist.get_rank() == 0:
        return 0.0
    with suppress(ConnectionRefusedError):
        while True:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))).close()
            time.sleep(0.05)
    begin_case("the first generation")
    started = time.monotonic()
    generate(model)
    return time.monotonic() - started


def test_rank_0_has_ended_before_the_first_generation(checkpoint: str) -> None:
    """The others do not try to reach its store, for which torch takes half an hour."""
    assert max(run_ranks(outlives_rank_0, 2, checkpoint, launch=Launch(joins=False))) < 10


@pytest.mark.slow
def test_a_program_that_knows_nothing_of_it(checkpoint: str, tmp_path: Path) -> None:
    """`accelerate launch -m safe_dtype.run`: three ranks with shares of the prompts, the last one with fewer."""
    import transformers as tf

    program = str(Path(__file__).with_name("generate_plainly.py"))
    arguments = [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "3", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port()),
        "-m", "safe_dtype.run", "--policy", LADDER, program, checkpoint,
    ]  # fmt: skip
    ends, log = run_program(arguments, tmp_path, 3)
    assert [end["dtype"] for end in ends] == ["torch.float32"] * 3, log
    plain = tf.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    answers = [answer for end in ends for answer in end["answers"]]
    assert answers == [generate_plainly.generate(plain, prompt) for prompt in generate_plainly.PROMPTS]
