"""The protocol among thousands of ranks: votes over a simulated network, and the agreement of all on one plan.

What decides is the package's own code: `cast_vote`, `Board`, `agree`, `check_plans`. The network and the store are simulated
with times that were measured here.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from safe_dtype.devices import facts_of
from safe_dtype.errors import PeerLostError, RanksDisagreeError
from safe_dtype.facts import LearnedFailure
from safe_dtype.ranks import Vote, World, cast_vote
from safe_dtype.ranks.one_plan.board import Board
from safe_dtype.ranks.one_plan.consensus import Contribution, agree, check_plans
from safe_dtype.ranks.one_plan.started import shared

from .network import Network, SimulatedGroup, Store, run_all

LATE_SECONDS = 1.0
SECONDS = 600.0  # that a vote waits for a rank that hangs: as long as the world says


def votes(size: int, hops: Sequence[float]) -> dict[str, Any]:
    """Return what a vote of `size` ranks costs."""
    network = Network(size, hops)
    failing = {size // 3, size - 1}
    outcomes = run_all(network, lambda world, _: cast_vote(world, _fails(world, failing), 7))
    tallies = {tally for tally, _ in outcomes}
    if len(tallies) > 1 or next(iter(tallies)).rank != size // 3:
        raise AssertionError(f"{size} ranks have heard {len(tallies)} different things")
    seconds = [at for _, at in outcomes]
    return {
        "rounds": (size - 1).bit_length(),
        "messages": network.messages,
        "message_bytes": network.message_bytes,
        "median_rank_ms": _ms(statistics.median(seconds)),
        "last_rank_ms": _ms(max(seconds)),
        "ring_ms": _ms(statistics.mean(hops) * 2 * (size - 1)),
    }


def troubles(size: int, hops: Sequence[float]) -> dict[str, float]:
    """Return when the last of `size` ranks is through with a vote to which one comes late, or does not come."""
    special = size // 2
    return {
        "late_rank_adds_ms": _ms(_last(Network(size, hops), special, late=LATE_SECONDS) - LATE_SECONDS),
        "ended_rank_known_after_ms": _ms(_last(Network(size, hops), special, ends=True)),
        "hanging_rank_known_after_s": round(_last(Network(size, hops, [special]), special), 3),
    }


def _fails(world: World, failing: set[int]) -> Vote:
    return Vote.FALL_BACK if world.rank in failing else Vote.OK


def _last(network: Network, special: int, *, late: float = 0.0, ends: bool = False) -> float:
    """Return when the last rank is through; where one is gone, each of the others has to know which."""

    def act(world: World, group: SimulatedGroup) -> Any:
        if world.rank == special:
            group.now += late
            if ends:
                raise RuntimeError("it has ended")
        return cast_vote(world, Vote.OK, seconds=SECONDS)

    outcomes = run_all(network, act, SECONDS)
    others = [outcome for rank, outcome in enumerate(outcomes) if rank != special]
    if ends or network.hangs:
        known = Counter(
            tuple(getattr(error, "missing", ())) for error, _ in others if isinstance(error, PeerLostError)
        )
        if known != {(special,): network.size - 1}:
            raise AssertionError(
                f"of {network.size} ranks some do not know that {special} is gone: {known.most_common(3)}"
            )
    return max(at for _, at in others)


def consensus(size: int, store_us: float, bytes_per_second: float) -> dict[str, dict[str, float]]:
    """Return what it costs `size` ranks to agree on one plan: alike in three kinds, or no two alike.

    `store_us`: microseconds of the store for one request.
    """
    return {
        kind: _consensus(size, contributions, store_us, bytes_per_second)
        for kind, contributions in (
            ("three_kinds", contributions_of(size, 3)),
            ("no_two_alike", contributions_of(size, size)),
        )
    }


def contributions_of(size: int, kinds: int) -> list[Contribution]:
    """Return what `size` ranks tell each other before a load, with devices of so many kinds."""
    facts = shared(facts_of("cpu"))
    first = Contribution("auto", "meta-llama/Llama-3.1-8B", None, facts)

    def of_kind(number: int) -> Contribution:
        verdicts = tuple(
            replace(one, prefill_flops_per_s=(one.prefill_flops_per_s or 0.0) * (1 + number * 1e-6))
            for one in facts.verdicts
        )
        return replace(first, device=replace(facts, verdicts=verdicts))

    made = [of_kind(number) for number in range(kinds)]
    contributions = [made[rank % kinds] for rank in range(size)]
    for rank, dtype in ((size // 3, "bfloat16"), (size - 1, "float16")):
        lesson = LearnedFailure(
            "LlamaForCausalLM", "Linear", dtype, facts.device, None, "RuntimeError", f"of rank {rank}"
        )
        contributions[rank] = replace(contributions[rank], lessons=(lesson,))
    return contributions


def _consensus(
    size: int, contributions: Sequence[Contribution], store_us: float, bytes_per_second: float
) -> dict[str, float]:
    store = Store()
    started = time.perf_counter()
    for rank, contribution in enumerate(contributions):
        Board(rank, size, store).leave("load", contribution)
    all_left = time.perf_counter() - started
    requests, sent = store.requests, store.sent_bytes
    started = time.perf_counter()
    groups = Board(0, size, store).left("load")
    read = time.perf_counter() - started
    requests_to_read, bytes_to_read = store.requests - requests, store.sent_bytes - sent
    started = time.perf_counter()
    agreed = agree(groups)
    decided = time.perf_counter() - started
    if {lesson.dtype for lesson in agreed.lessons} != {"bfloat16", "float16"} or agreed != agree(
        tuple(reversed(groups))
    ):
        raise AssertionError("what ranks have learned is not united, or the order counts")
    _proves_plans(size)
    total_requests, total_bytes = requests + requests_to_read * size, sent + bytes_to_read * size
    return {
        "requests": total_requests,
        "store_bytes": total_bytes,
        "bytes_each_rank_reads": bytes_to_read,
        "store_busy_s": round(total_requests * store_us / 1e6 + total_bytes / bytes_per_second, 3),
        "read_ms": _ms(read),
        "decide_ms": _ms(decided),
        "simulated_in_s": round(all_left, 2),
    }


def _proves_plans(size: int) -> None:
    """Check that one other plan among many is found, and that equal ones pass."""
    same = tuple(range(size - 1))
    check_plans([(same, ("a" * 64, "bfloat16")), ((size - 1,), ("a" * 64, "bfloat16"))])
    try:
        check_plans([(same, ("a" * 64, "bfloat16")), ((size - 1,), ("b" * 64, "float16"))])
    except RanksDisagreeError:
        return
    raise AssertionError("another plan was not found")


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
