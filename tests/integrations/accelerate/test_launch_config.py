"""Configs as accelerate itself reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safe_dtype.integrations.accelerate import (
    Engine,
    Fleet,
    config_file,
    fleet_named,
    launch_config,
    ready_config,
    ready_names,
)

from safe_dtype.errors import LaunchError

REGENERATE = "python -c 'from safe_dtype.integrations.accelerate.ready_configs import *; write_ready_configs()'"


@pytest.mark.parametrize(
    ("name", "kind", "processes", "precision"),
    [
        ("one-t4", "NO", 1, "fp16"),
        ("v100s", "MULTI_GPU", 4, "fp16"),
        ("a100-or-h100-node", "MULTI_GPU", 8, "bf16"),
        ("t4s-and-a100s", "MULTI_GPU", 2, "fp16"),
        ("cpu-cluster", "MULTI_GPU", 4, "no"),
        ("mac", "NO", 1, "fp16"),
        ("fsdp2", "FSDP", 8, "bf16"),
        ("zero2", "DEEPSPEED", 8, "bf16"),
        ("zero3", "DEEPSPEED", 8, "bf16"),
    ],
)
def test_ready_configs(name: str, kind: str, processes: int, precision: str) -> None:
    """Accelerate reads every ready file; each is what the generator writes now, and says why it has its precision."""
    file = config_file(name)
    config: Any = load_config_from_file(str(file))
    assert (config.distributed_type.value, config.num_processes, config.mixed_precision) == (
        kind,
        processes,
        precision,
    )
    assert config.use_cpu is (name == "cpu-cluster")
    assert file.read_text(encoding="utf-8") == ready_config(name).as_yaml(), REGENERATE
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == ready_config(name).as_dict()
    assert f"# {precision}: " in file.read_text(encoding="utf-8")


def test_every_ready_file_is_named() -> None:
    """The folder holds the files of the names, and nothing else."""
    files = {file.stem for file in config_file("mac").parent.iterdir()}
    assert files == set(ready_names())


def test_sharded_settings_reach_accelerate(tmp_path: Path) -> None:
    """FSDP2 and ZeRO are told to accelerate in its own words; on several machines DeepSpeed by the one that restarts."""
    fsdp: Any = load_config_from_file(str(config_file("fsdp2")))
    assert fsdp.fsdp_config["fsdp_version"] == 2
    (tmp_path / "zero.yaml").write_text(launch_config(fleet_named(["A100"], 8, 2, Engine.ZERO3)).as_yaml())
    zero: Any = load_config_from_file(str(tmp_path / "zero.yaml"))
    assert (zero.deepspeed_config["zero_stage"], zero.num_processes) == (3, 16)
    assert zero.deepspeed_config["deepspeed_multinode_launcher"] == "standard"


def test_heading_names_what_decides() -> None:
    """The file says for which devices it is, how it is started, and that nothing was measured."""
    text = launch_config(fleet_named(["NVIDIA Tesla T4"], 2, 2)).as_yaml()
    assert "NVIDIA Tesla T4: 2 processes on each of 2 machines. Verdicts: published facts" in text
    assert "safe-dtype launch --config_file THIS_FILE --machine_rank RANK --main_process_ip ADDRESS train.py" in text


@pytest.mark.parametrize(
    ("fleet", "problem"),
    [
        pytest.param(lambda: fleet_named(["T4", "AMD EPYC 7003"]), "cannot be in one job", id="gpu-and-cpu"),
        pytest.param(lambda: fleet_named(["T4", "MI210"]), "cannot be in one job", id="two-makers"),
        pytest.param(lambda: fleet_named(["Apple M2"], 2), "A Mac has one GPU", id="two-on-a-mac"),
        pytest.param(
            lambda: fleet_named(["AMD EPYC 7003"], engine=Engine.FSDP2), "fsdp2 needs GPUs", id="fsdp-on-cpu"
        ),
        pytest.param(lambda: Fleet(()), "needs a device", id="nothing"),
        pytest.param(lambda: fleet_named(["T4"], 0), "a process and a machine", id="no-process"),
    ],
)
def test_what_cannot_be_launched(fleet: Any, problem: str) -> None:
    """Accelerate would fail on it late, or run something else without a word: it is refused at once."""
    with pytest.raises(LaunchError, match=problem):
        launch_config(fleet())


def test_unknown_ready_config() -> None:
    """The error lists those that there are."""
    with pytest.raises(LaunchError, match=r"no ready config 'one-t5'.*one-t4, v100s"):
        config_file("one-t5")
