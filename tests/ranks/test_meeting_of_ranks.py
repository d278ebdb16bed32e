"""Ranks that load one model: the same plan on all, whatever their machines, and an error on all where they cannot."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import safe_dtype
from safe_dtype import SafeAutoModelForCausalLM, errors, plan_of
from safe_dtype.loading.plan_request import plan_request
from safe_dtype.loading.request import Request
from safe_dtype.ranks import Vote, cast_vote, current_world, known_world, world
from safe_dtype.ranks.one_plan import meeting_of_ranks
from safe_dtype.ranks.one_plan.consensus import digest

from .processes import Launch, begin_case, run_ranks

Saved = Callable[..., Path]


def rank() -> int:
    """Return which rank this is, before it is connected as well."""
    return int(os.environ["RANK"])


def loaded(source: Path | str, **arguments: Any) -> str:
    """Return what the plan of a model that is loaded now comes to, or the error that ends it."""
    try:
        return digest(plan_of(SafeAutoModelForCausalLM.from_pretrained(source, **arguments)))
    except errors.SafeDtypeError as exc:
        return f"{type(exc).__name__}: {exc}"


def plan_for(source: Path, dtype: str) -> Any:
    """Return a plan that is made without the other ranks."""
    return plan_request(Request(source, {"dtype": dtype}))


def all_cases(source: Path, own: Path) -> dict[str, Any]:
    """Run every case of two ranks in one launch; return what came of each."""
    os.environ["SAFE_DTYPE_CACHE"] = str(own)
    return {**before_connecting(source, own), **connected(source), **connected_anew(own)}


def before_connecting(source: Path, own: Path) -> dict[str, Any]:
    """Load where torch.distributed is not initialized yet."""
    results: dict[str, Any] = {}
    begin_case("before the process group")
    results["same"] = loaded(source)
    begin_case("another policy")
    results["policy"] = loaded(source, policy="auto" if rank() == 0 else "auto,prefer=memory")
    begin_case("a plan that is passed")
    bfloat16, float32 = (plan_for(source, dtype) for dtype in ("bfloat16", "float32"))
    results["passed"] = loaded(source, plan=bfloat16)
    results["another plan"] = loaded(source, plan=bfloat16 if rank() == 0 else float32)
    results["half passed"] = loaded(source, **({"plan": float32} if rank() == 0 else {}))
    begin_case("another checkpoint")
    mine = own / f"rank {rank()}"
    shutil.copytree(source, mine)
    os.chdir(mine)
    if rank() == 1:
        weights = Path("model.safetensors").read_bytes()
        Path("model.safetensors").write_bytes(weights[:-2] + b"\x01\x3f")
    results["checkpoint"] = loaded(".")
    begin_case("no checkpoint on one rank")
    if rank() == 1:
        Path("config.json").unlink()
        Path("model.safetensors").unlink()
    results["unreadable"] = loaded("./")
    begin_case("no measurement on one rank")
    if rank() == 1:
        os.environ.update(SAFE_DTYPE_PROBE="nowhere", SAFE_DTYPE_CACHE=str(own / "empty"))
    results["unmeasured"] = plan_of(SafeAutoModelForCausalLM.from_pretrained(source)).explain()
    os.environ.update(SAFE_DTYPE_PROBE="", SAFE_DTYPE_CACHE=str(own))
    return results


def connected(source: Path) -> dict[str, Any]:
    """Load, vote and start a child where the ranks are connected."""
    results: dict[str, Any] = {}
    begin_case("connected")
    results["before"] = (current_world(), known_world())
    ranks = safe_dtype.init_process_group(seconds=60)
    assert ranks is not None
    assert ranks is current_world() is known_world()
    results["vote"] = cast_vote(ranks, Vote.RETRY if rank() == 1 else Vote.OK, 5)
    begin_case("one rank loads alone")
    meeting_of_ranks.SECONDS_TO_PROVE = 0.5
    started = time.monotonic()
    results["alone"] = loaded(source, dtype="auto") if rank() == 0 else ""
    results["seconds alone"] = time.monotonic() - started
    dist.barrier()
    results["late"] = loaded(source, dtype="auto") if rank() == 1 else ""
    dist.barrier()
    begin_case("a child of a rank")
    child = os.fork()
    if child == 0:
        os._exit(0 if current_world() is None and meeting_of_ranks.current_board() is None else 1)
    results["child"] = os.waitpid(child, 0)[1]
    return results


def connected_anew(own: Path) -> dict[str, Any]:
    """Connect a second time in the life of this process, at first without rank 1."""
    begin_case("connected anew")
    before = current_world()
    dist.barrier()
    dist.destroy_process_group()
    assert current_world() is None
    dist.init_process_group(
        "gloo", init_method=f"file://{own}/anew", rank=rank(), world_size=2, timeout=timedelta(seconds=30)
    )
    world.SECONDS_TO_WAIT = 0.5
    if rank() == 0:
        with pytest.raises(errors.PeerLostError, match="for rank 1: it has not come to where the ranks connect"):
            current_world()
    dist.barrier()
    world.SECONDS_TO_WAIT = 30.0
    anew = current_world()
    tally = cast_vote(anew, Vote.OK)
    dist.barrier()
    return {"anew": anew is not before and tally.ok}


def test_two_ranks(saved: Saved, tmp_path: Path) -> None:
    """Two ranks hold one plan, or end with one error; a rank that is alone goes on, and nobody is left waiting."""
    first, second = run_ranks(all_cases, 2, saved("qwen3"), tmp_path, launch=Launch(joins=False))
    assert first["same"] == second["same"]
    assert len(first["same"]) == 64
    assert first["policy"] == second["policy"]
    assert "RanksDisagreeError" in first["policy"]
    assert "rank 1: auto,prefer=memory" in first["policy"]
    assert first["passed"] == second["passed"]
    assert len(first["passed"]) == 64
    assert first["another plan"] == second["another plan"]
    assert first["another plan"].startswith(
        "RanksDisagreeError: The ranks of this job do not agree on the plan: rank 0: "
    )
    assert first["half passed"] == second["half passed"]
    assert "rank 1: none is passed. Next: pass the same plan on every rank, or on none." in first["half passed"]
    assert first["checkpoint"] == second["checkpoint"]
    assert "do not agree on the checkpoint: rank 0: . (tensors " in first["checkpoint"]
    assert first["unreadable"].startswith("RemoteFailure: Rank 1 failed: CheckpointNotFoundError: ")
    assert second["unreadable"].startswith("CheckpointNotFoundError: ")
    assert "could not be measured" in first["unmeasured"]
    assert first["unmeasured"] == second["unmeasured"]
    assert first["before"] == second["before"] == (None, None)
    assert first["vote"] == second["vote"]
    assert (first["vote"].vote, first["vote"].rank, first["vote"].payload) == (Vote.RETRY, 1, 5)
    assert first["alone"] == second["late"]
    assert len(first["alone"]) == 64
    assert first["seconds alone"] < 10
    assert first["child"] == second["child"] == 0
    assert first["anew"]
    assert second["anew"]


def ends_at_once(source: Path) -> str:
    """Load with a policy that differs on one rank; what follows is the end of this process, and with rank 0 of the store."""
    return loaded(source, policy="strict" if rank() == 1 else "auto")


def test_rank_0_leaves_last(tiny_qwen3: Path) -> None:
    """All ranks end with the error, though the first one of them takes the notes of all with it."""
    outcomes = run_ranks(ends_at_once, 3, tiny_qwen3, launch=Launch(joins=False))
    assert {outcome.partition(":")[0] for outcome in outcomes} == {"RanksDisagreeError"}


def all_trials(source: Path, cache: Path) -> dict[str, Any]:
    """Load what has to be measured on the model first; return what came of it, and what this rank measured itself."""
    os.environ["SAFE_DTYPE_CACHE"] = str(cache)
    measured: list[str] = []
    logging.getLogger("safe_dtype").addHandler(handler := logging.Handler())
    handler.emit = lambda record: measured.append(record.getMessage())  # type: ignore[method-assign]
    begin_case("float16 is measured", 100)
    model = SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16")
    results: dict[str, Any] = {"plan": digest(plan_of(model)), "storage": str(plan_of(model).storage)}
    results["measured"] = [text for text in measured if "measuring whether float16 holds" in text]
    begin_case("it fails on the rank that measures")
    os.environ["SAFE_DTYPE_CACHE"] = str(cache / "empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safe_dtype.loading.trials.float16.half_of", no_half)
        try:
            SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16")
        except RuntimeError as exc:
            results["failure"] = f"{type(exc).__name__}: {exc}"
    return results


def no_half(*_: Any, **__: Any) -> None:
    """Fail as a driver would."""
    raise RuntimeError("the driver has gone")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_measured_once(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Whether float16 holds a model is measured by one rank for both, and where that fails both hear of it."""
    launch = Launch(seconds=150, joins=False)
    first, second = run_ranks(all_trials, 2, tiny_qwen3, tmp_path / "cache", launch=launch)
    assert first["plan"] == second["plan"]
    assert first["storage"] == "float16"
    assert sorted(len(one["measured"]) for one in (first, second)) == [0, 1]
    assert sorted(one["failure"] for one in (first, second)) == [
        "RemoteFailure: Rank 0 failed: RuntimeError: the driver has gone. Next: look at the log of rank 0.",
        "RuntimeError: the driver has gone",
    ]
