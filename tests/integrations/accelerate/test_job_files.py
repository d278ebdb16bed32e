"""The example jobs of Slurm and Kubernetes start what they say they start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from safe_dtype.integrations.accelerate import fleet_named, launch_config, launch_of

CLUSTERS = Path(__file__).resolve().parents[3] / "examples" / "clusters"

# In place of the cluster's own programs: two nodes, of which srun is run on the one that the test says.
PROGRAMS = {
    "scontrol": 'test "$*" = "show hostnames node-[0-1]"; printf "node-0\\nnode-1\\n"',
    "srun": 'shift; exec "$@"',
    "safe-dtype": 'printf "%s\\0" "$@"',
}
SLURM = {"SLURM_JOB_NODELIST": "node-[0-1]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the cluster's programs, where the config is that the jobs name."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\nset -e\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "config.yaml").write_text(launch_config(fleet_named(["NVIDIA A100"], 8, 2)).as_yaml())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(command: list[str], folder: Path, **settings: str) -> str:
    """Run a job's command; return what the `safe-dtype launch` in it starts."""
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **settings}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    verb, *arguments = done.stdout.removesuffix("\0").split("\0")
    assert verb == "launch"
    return str(launch_of(arguments, {}))


@pytest.mark.parametrize(("node", "is_host"), [("0", "true"), ("1", "false")])
def test_slurm(node: str, is_host: str, folder: Path) -> None:
    """Every node starts a launcher for its own GPUs; they meet on the first."""
    line = started(["bash", str(CLUSTERS / "slurm_job.sh")], folder, SLURM_NODEID=node, **SLURM)
    assert f"--num_machines 2 --num_processes 8 --machine_rank {node} --main_process_ip node-0" in line
    assert f"--rdzv_backend c10d --rdzv_conf is_host={is_host}," in line
    assert line.endswith("-m safe_dtype.run train.py")


@pytest.mark.parametrize(("pod", "is_host"), [("0", "true"), ("1", "false")])
def test_kubernetes(pod: str, is_host: str, folder: Path) -> None:
    """Every pod starts a launcher for its own GPUs; they meet in pod 0, by the name that the service gives it."""
    service, job = yaml.safe_load_all((CLUSTERS / "kubernetes_job.yaml").read_text(encoding="utf-8"))
    template: Any = job["spec"]["template"]["spec"]
    container = template["containers"][0]
    line = started(container["command"], folder, JOB_COMPLETION_INDEX=pod)
    pods, gpus = job["spec"]["completions"], container["resources"]["limits"]["nvidia.com/gpu"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    meeting_point = f"{job['metadata']['name']}-0.{template['subdomain']}"
    assert template["subdomain"] == service["metadata"]["name"]
    assert f"--num_machines {pods} --num_processes {pods * gpus} --machine_rank {pod}" in line
    assert f"--main_process_ip {meeting_point}" in line
    assert f"--rdzv_conf is_host={is_host}," in line
    assert line.endswith("-m safe_dtype.run train.py")
