"""What travels between a parent and its child."""

from __future__ import annotations

import math
from pathlib import Path

from safe_dtype.facts import BFLOAT16
from safe_dtype.optimizing.nouns.job import AttemptResult, DriftLimit, Dynamic, Job
from safe_dtype.optimizing.nouns.record import BreakSite, Distance, Outcome, Seconds, Stage


def test_job_is_json(tmp_path: Path) -> None:
    """A job survives the way to the child."""
    job = Job(
        Path("/m"), "ViTModel", BFLOAT16, "regional", tmp_path, Path("/a"), (Path("/b"),), (Path("/c"),),
        Dynamic((1, 32), {"x": {2: (64, 256)}}), ("attn_implementation=sdpa",), ("attn_implementation=eager",), ("layers.0",), ("traced",), False,
        True,
        "cpu", 1, DriftLimit(0.1, tmp_path / "eager"),
    )  # fmt: skip
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job


def test_result_is_json(tmp_path: Path) -> None:
    """A result survives the way back, infinities too."""
    far = Stage("traced", Distance(math.inf, math.inf, -1.0, None, 3), "far")
    site = BreakSite("a.py", 3, "if x:", "Data-dependent branching", "data_dependent")
    result = AttemptResult("leaving", Outcome.WRONG, "why", (site,), (far,), Seconds(build=1.0), 7)
    result.write(tmp_path / "result.json")
    assert AttemptResult.read(tmp_path / "result.json") == result


def test_ranges_of_an_input() -> None:
    """The batch is dimension 0 of every input, further dimensions are one input's own."""
    dynamic = Dynamic((1, 8), {"pixels": {2: (32, 64)}})
    assert dynamic.of("pixels") == {0: (1, 8), 2: (32, 64)}
    assert dynamic.of("mask") == {0: (1, 8)}
    assert not Dynamic()
