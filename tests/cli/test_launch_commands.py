"""`safe-dtype accelerate-config` and `safe-dtype launch`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from command_run import Run, run
from safe_dtype.integrations.accelerate import config_file

__all__ = ["run"]


def test_of_this_machine(run: Run, tmp_path: Path) -> None:
    """Without options it is the config of what was measured here: the recorded CPU, which has bf16."""
    done = run("accelerate-config", "--gpus", 2)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "config.yaml"
    file.write_text(done.stdout)
    config = load_config_from_file(str(file))
    assert (config.num_processes, config.use_cpu) == (2, True)
    assert "Verdicts: measured" in done.stdout
    assert config.mixed_precision == "bf16"
    assert "# bf16: native on every device" in done.stdout


def test_of_named_devices(run: Run) -> None:
    """Devices that are not here are taken by published facts, the weakest of them decides."""
    done = run("accelerate-config", "--devices", "NVIDIA Tesla T4", "--devices", "NVIDIA A100", "--nodes", 2)
    assert yaml.safe_load(done.stdout)["mixed_precision"] == "fp16"
    assert "bf16 is rejected: NVIDIA Tesla T4: slow, bf16 is emulated" in done.stdout


def test_ready(run: Run) -> None:
    """A ready config is printed as it is installed, and combined with nothing."""
    assert run("accelerate-config", "--ready", "zero3").stdout == config_file("zero3").read_text(encoding="utf-8")
    done = run("accelerate-config", "--ready", "zero3", "--gpus", 2)
    assert done.returncode == 2
    assert "cannot be combined" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--devices", "NVIDIA Tesla T5"), "The device 'NVIDIA Tesla T5' is not known"),
        (("--devices", "T4", "--devices", "Apple M2"), "cannot be in one job"),
        (("--engine", "fsdp2", "--devices", "AMD EPYC 7003"), "fsdp2 needs GPUs"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], problem: str, run: Run) -> None:
    """What cannot be configured ends with one line on stderr, and nothing on stdout."""
    done = run("accelerate-config", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_dry_run(run: Run) -> None:
    """What would be started is printed: settings, accelerate's options, and the script under `safe_dtype.run`."""
    done = run("launch", "--policy", "prefer=memory", "--dry-run", "--config_file", "v100s", "train.py", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PET_STANDALONE=1")
    assert done.stdout.endswith("-m safe_dtype.run --policy auto,prefer=memory train.py --help\n")
