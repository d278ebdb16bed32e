"""bf16=True and fp16=True become what the device trains in: Trainer, plain accelerate, and its environment."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from recorded_cpu import figures
from tiny_models import TINY
from transformers import Trainer, TrainingArguments

import safe_dtype
from safe_dtype import SafeDtypeWarning, patched
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, Verdict

# Bytes/s of reading at one row and FLOP/s at 512 rows.
FAST = {FLOAT32: (28e9, 150e9), BFLOAT16: (26e9, 500e9), FLOAT16: (26e9, 5e9)}
OLD = {FLOAT32: (28e9, 150e9), BFLOAT16: (26e9, 5e9), FLOAT16: (26e9, 5e9)}


@pytest.fixture(params=["fast", "old"])
def cpu(request: pytest.FixtureRequest) -> str:
    """Say which CPU is here."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _fresh(cpu: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Have a CPU that trains fast in bfloat16, or an old one; and nothing decided yet."""

    def measured(device: str, dtypes: Sequence[Dtype], widths: Any, *, ops: Any, routes: Any) -> tuple[Verdict, ...]:
        return figures(dtypes, widths, ops, routes, {"fast": FAST, "old": OLD}[cpu])

    monkeypatch.setattr("safe_dtype.devices.survey.measure", measured)
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "verdicts"))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def arguments(folder: Path, **options: Any) -> Any:
    """Make arguments of a Trainer that writes nothing."""
    return TrainingArguments(str(folder), report_to=[], save_strategy="no", disable_tqdm=True, **options)


def trainer(args: Any) -> Any:
    """Make a Trainer of a tiny model."""
    return Trainer(model=TINY["qwen3"].make(), args=args)


ASKED = [
    pytest.param({"bf16": True}, {"fast": "bf16", "old": "no"}, id="bf16"),
    pytest.param({"fp16": True}, {"fast": "no", "old": "no"}, id="fp16"),
    pytest.param({}, {"fast": "no", "old": "no"}, id="neither"),
]


@pytest.mark.parametrize(("options", "becomes"), ASKED)
def test_a_trainer(options: dict[str, bool], becomes: dict[str, str], cpu: str, tmp_path: Path) -> None:
    """Its precision is what works, the arguments say the same, and one warning tells of a change."""
    with patched(tell="nothing"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SafeDtypeWarning)
        made = trainer(arguments(tmp_path, use_cpu=True, **options))
    name = becomes[cpu]
    assert made.accelerator.mixed_precision == made.args.mixed_precision == name
    assert (made.args.bf16, made.args.fp16) == (name == "bf16", False)
    told = [str(one.message) for one in caught if one.category is SafeDtypeWarning]
    changed = any(options.values()) and not options.get(f"{name[:2]}16")
    assert len(told) == changed
    assert all("Training in float32. Next: ask for mixed_precision='no'" in text for text in told)


def test_bf16_on_a_machine_without_an_accelerator(cpu: str, tmp_path: Path) -> None:
    """What transformers refuses there is trained on the CPU: in bfloat16 where it is fast, else in float32."""
    with patched(tell="nothing"), pytest.warns(SafeDtypeWarning) as caught:
        made = trainer(arguments(tmp_path, bf16=True))
    assert made.accelerator.mixed_precision == {"fast": "bf16", "old": "no"}[cpu]
    text = {"fast": "no accelerator is here: training on", "old": "takes 30x float32's time"}[cpu]
    assert [text in str(one.message) for one in caught] == [True]


@pytest.mark.parametrize("by_environment", [False, True], ids=["argument", "environment"])
def test_plain_accelerate(cpu: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Accelerator gets what works, by whatever way it was asked; one more asks the same, and gets the same unwarned."""
    options = {} if by_environment else {"mixed_precision": "bf16"}
    if by_environment:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with patched(tell="nothing"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SafeDtypeWarning)
        precisions = [Accelerator(cpu=True, **options).mixed_precision for _ in range(2)]
    assert precisions == [{"fast": "bf16", "old": "no"}[cpu]] * 2
    assert len(caught) == (cpu == "old")


def test_strict_keeps_the_order_and_the_error(tmp_path: Path) -> None:
    """Nothing is changed in strict mode, and what transformers raises comes through."""
    with patched("strict", tell="nothing"):
        with pytest.raises(ValueError, match="Your setup doesn't support bf16/gpu"):
            arguments(tmp_path, bf16=True)
        assert trainer(arguments(tmp_path, bf16=True, use_cpu=True)).accelerator.mixed_precision == "bf16"


def test_nothing_is_changed_unasked(tmp_path: Path) -> None:
    """Without patch() transformers and accelerate are what they are."""
    with pytest.raises(ValueError, match="Your setup doesn't support bf16/gpu"):
        arguments(tmp_path, bf16=True)
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


def test_a_process_that_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device cannot be measured, the order stands."""

    def fails(*_: Any, **__: Any) -> None:
        raise safe_dtype.errors.ProbeError("cpu", "no process could be started", "free memory")

    monkeypatch.setattr("safe_dtype.devices.survey.measure", fails)
    with patched(tell="nothing"):
        assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


@pytest.mark.slow
@pytest.mark.needs("x86")
@pytest.mark.parametrize(
    ("program", "printed"),
    [
        pytest.param(
            "from accelerate import Accelerator\nprint(Accelerator(mixed_precision='bf16').mixed_precision)", "no",
            id="accelerate",
        ),
        pytest.param(
            "from transformers import TrainingArguments\nargs = TrainingArguments('out', bf16=True)\n"
            "import torch\nfrom transformers import Trainer\n"
            "print(Trainer(model=torch.nn.Linear(4, 4), args=args).accelerator.mixed_precision, args.bf16)", "no False",
            id="trainer",
        ),
    ],
)  # fmt: skip
def test_a_program_of_others_on_an_older_cpu(program: str, printed: str, tmp_path: Path) -> None:
    """A program that orders bfloat16, run on a CPU that emulates it, is told so and trains in float32."""
    (tmp_path / "train.py").write_text(program)
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-m", "safe_dtype.run", "train.py"]
    done = subprocess.run(
        command, env=os.environ | older, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == printed
    assert done.stderr.count("float32's time") == 1
