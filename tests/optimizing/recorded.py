"""The record of an optimization with every outcome, for tests of what describes it."""

from __future__ import annotations

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.optimizing.nouns.record import (
    Batch,
    BreakSite,
    Distance,
    DtypeVerdict,
    FormAttempt,
    Optimization,
    Outcome,
    Seconds,
    Stage,
    Status,
)

SITE = BreakSite("models/m.py", 12, "if a | b or `c`:", "Data-dependent | branching", "data_dependent", 3)

EAGER = FormAttempt(
    "eager", FLOAT32, Outcome.VERIFIED, stages=(Stage("traced", Distance(0.0, 0.0, 1.0)),),
    seconds=Seconds(build=0.0, run=0.020, eager=0.020), log="attempts/00-eager-float32/attempt.log",
)  # fmt: skip

FAST = FormAttempt(
    "regional", BFLOAT16, Outcome.VERIFIED, remedies=("attn_implementation=sdpa",),
    stages=(
        Stage("traced", Distance(0.01, 1e-3, 0.9999, 1.0, miou=0.999)),
        Stage("held out", Distance(0.02, 1e-2, 0.999, 0.99999, kl=0.001, miou=0.98, equal_entries=0.97)),
    ),
    seconds=Seconds(build=12.34, run=0.005, eager=0.010, spread=0.1), bytes=3 * 2**20, regions=("layers.0", "layers.1"),
    coverage=0.87, log="attempts/01-regional-bfloat16/attempt.log",
)  # fmt: skip

WRONG = FormAttempt(
    "torchscript", FLOAT32, Outcome.WRONG, "held out: it differs | by *0.5* of\nthe largest",
    stages=(Stage("traced", Distance(0.0, 0.0, 1.0)), Stage("held out", Distance(1.0, 0.5, 0.3), "too far")),
    log="attempts/02-torchscript-float32/attempt.log",
)  # fmt: skip

FAILED = FormAttempt("export", FLOAT32, Outcome.FAILED, "Data-dependent branching", sites=(SITE,), log="attempts/03/attempt.log")  # fmt: skip

SKIPPED = FormAttempt("onnx", FLOAT16, Outcome.SKIPPED, "onnx not installed")

RECORD = Optimization(
    "tiny<b>", "DbrxForCausalLM", "cpu", "export", "auto", "bfloat16", parameters=1234567,
    environment={"python": "3.11", "packages": {"torch": "2.13", "onnx": None}, "cpu": {"name": "a | b", "cores": 2}},
    verdicts=({"dtype": "float16", "op": "matmul", "kind": "native", "reason": ""},),
    files={"model.safetensors": "0123456789abcdef" * 4, "config.json": "f" * 64},
    batches=(Batch("traced", "inputs/traced-0.safetensors", {"input_ids": {"shape": [2, 9], "dtype": "int64"}}, "random"),),
    dynamic={"batch": [1, 32], "dims": {"input_ids": {"1": [2, 64]}}},
    reference={"steady": True, "finite": True, "degenerate": False, "largest": 5.289, "problems": [], "weak": ["one class"]},
    graphs={
        "whole": False, "reason": "Data-dependent branching", "sites": [
            {"file": SITE.file, "line": 12, "code": SITE.code, "reason": SITE.reason, "kind": SITE.kind, "count": 3}
        ], "tried": {"experts_implementation=batched_mm": "the same line"},
        "counts": [{"mode": "default", "graphs": 17, "reasons": 5, "counter": 10, "problem": ""}],
        "unusable": {"held-out-3.safetensors": "IndexError"},
    },
    dtypes=(
        DtypeVerdict(FLOAT32, Distance(0.0, 0.0, 1.0, 1.0), seconds=0.02, speedup=1.0),
        DtypeVerdict(BFLOAT16, Distance(0.07, 0.014, 0.9999, 0.99), seconds=0.01, speedup=2.0),
        DtypeVerdict(FLOAT16, None, "ended by SIGSEGV"),
    ),
    attempts=(EAGER, FAST, WRONG, FAILED, SKIPPED), chosen=1, status=Status.FELL_BACK,
    why="fell back to regional in bfloat16: Data-dependent branching",
)  # fmt: skip
