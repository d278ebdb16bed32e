"""What `safe-dtype launch` starts: read from its arguments, and started for real with processes on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safe_dtype.integrations.accelerate import config_file, fleet_named, launch_config, launch_of
from safe_dtype.integrations.accelerate.launching import RESTARTS

from safe_dtype.errors import LaunchError

Saved = Callable[..., Path]


def words_of(*arguments: str, **environment: str) -> str:
    """Return what would be started, as one line."""
    return str(launch_of(arguments, environment))


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        (("train.py", "--lr", "1"), "-m safe_dtype.run train.py --lr 1"),
        (("-m", "pkg.train", "-m", "x"), "safe_dtype.run -m pkg.train -m x"),
        (("--num_processes", "2", "--", "train.py", "--", "x"), "-m safe_dtype.run train.py -- x"),
    ],
)
def test_script(arguments: tuple[str, ...], ends: str) -> None:
    """The script, or the module, is run by `python -m safe_dtype.run`, with its own arguments."""
    line = words_of(*arguments)
    assert line.endswith(ends)
    assert line.split(" safe_dtype.run ")[0].split().count("-m") == 2  # python -m accelerate..., and accelerate's own


def test_what_is_open_is_set() -> None:
    """One machine: restarts, and a rendezvous of its own for each attempt, on a free port."""
    line = words_of("--num_processes", "2", "train.py")
    assert f"--max_restarts {RESTARTS} --rdzv_backend c10d" in line
    assert line.startswith("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PET_STANDALONE=1 PET_LOCAL_ADDR=127.0.0.1 python")


def test_who_launches() -> None:
    """What starts ranks is ours, which starts none again for an error of the program, and ends with its status."""
    ours = "python -m safe_dtype.integrations.accelerate.restarting_launch "
    assert ours in words_of("train.py")
    assert ours in words_of("--max_restarts", "0", "train.py")


@pytest.mark.parametrize(
    ("arguments", "text"), [(("absent.py",), "absent.py is not there"), (("-m", "absent.x"), "no module absent.x")]
)
def test_what_is_not_there(
    arguments: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script or a module that no rank would find is refused before anything is started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LaunchError, match=text):
        launch_of(arguments, {}).become()


def test_what_is_said_is_kept() -> None:
    """What the caller says, in arguments or in the environment, is not said again."""
    line = words_of("--max-restarts", "0", "--rdzv_backend", "static", "train.py")
    assert (
        line
        == "python -m safe_dtype.integrations.accelerate.restarting_launch --max-restarts 0 --rdzv_backend static "
        "-m safe_dtype.run train.py"
    )
    assert "PET_STANDALONE" not in words_of("train.py", PET_STANDALONE="0")


@pytest.mark.parametrize(
    "option", [("--config_file", "one-t4"), ("--config_file=one-t4",), ("--config-file", "one-t4")]
)
def test_a_ready_config(option: tuple[str, ...]) -> None:
    """Its name is replaced by its file, once, and the name of the script is not."""
    line = words_of(*option, "one-t4", "one-t4")
    assert line.count(str(config_file("one-t4"))) == 1
    assert line.endswith("-m safe_dtype.run one-t4 one-t4")
    assert "one-t4" not in line.replace(str(config_file("one-t4")), "").removesuffix("one-t4 one-t4")


@pytest.mark.parametrize("count", ["0", "-2"])
@pytest.mark.parametrize("option", ["--num_processes", "--num_machines"])
def test_nothing_to_start(option: str, count: str) -> None:
    """No processes, or machines, are refused before anything is started."""
    with pytest.raises(LaunchError, match=f"{option} {count} starts nothing.*pass {option} 1 or more"):
        words_of(option, count, "train.py")


@pytest.mark.parametrize("place", [("--config_file", "mac"), ("--cpu",), ("--config_file", "cpu-cluster")])
@pytest.mark.parametrize("engine", ["--use_deepspeed", "--use_fsdp"])
def test_an_engine_without_gpus(engine: str, place: tuple[str, ...]) -> None:
    """What divides a model over GPUs is refused for a Mac and for CPUs, as `accelerate-config` refuses it."""
    with pytest.raises(LaunchError, match=f"{engine} needs GPUs or their like: on (a Mac|CPUs) accelerate"):
        words_of(engine, *place, "--main_process_ip", "node-0", "train.py")


def test_several_machines() -> None:
    """Machine 0 is told that it is the host, the others that they are not: host names are not asked."""
    where = ("--num_machines", "2", "--num_processes", "4", "--main_process_ip", "node-0")
    assert "--rdzv_conf is_host=true,read_timeout=300" in words_of(*where, "train.py")
    other = words_of(*where, "--machine_rank", "1", "--same_network", "train.py")
    assert "--rdzv_conf is_host=false,read_timeout=300" in other
    assert "PET_RDZV_ENDPOINT=node-0:29500" in other  # accelerate names none here
    assert "PET_STANDALONE" not in other


def test_processors() -> None:
    """Several processes on the CPU are started as accelerate can start them; mpirun keeps its own way."""
    by_option = words_of("--cpu", "--num_processes", "2", "train.py", OMP_NUM_THREADS="1")
    assert "ACCELERATE_USE_CPU=true" in by_option
    assert "--multi_gpu" in by_option
    assert " --cpu " not in by_option
    by_file = words_of("--config_file", str(config_file("cpu-cluster")), "--num_machines", "1", "train.py")
    assert "ACCELERATE_USE_CPU=true" in by_file
    assert "--multi_gpu" not in by_file
    assert "ACCELERATE_USE_CPU" not in words_of("--cpu", "--num_processes", "1", "train.py")
    assert "ACCELERATE_USE_CPU" not in words_of("--cpu", "--num_processes", "2", "--mpirun_hostfile", "h", "train.py")


def test_ready_config_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ready config is named in place of a file, unless there is a file of that name."""
    monkeypatch.chdir(tmp_path)
    assert f"--config_file {config_file('v100s')}" in words_of("--config_file", "v100s", "train.py")
    (tmp_path / "v100s").write_text(config_file("mac").read_text())
    assert str(config_file("v100s")) not in words_of("--config_file", "v100s", "train.py")


@pytest.mark.parametrize(
    ("arguments", "text", "problem"),
    [
        pytest.param(("--num_machines", "2"), "", "2 machines, and no address where they meet", id="no-address"),
        pytest.param(
            ("--num_machines", "2", "--num_processes", "3", "--main_process_ip", "a"), "",
            "would start 2", id="uneven-processes",
        ),
        pytest.param(
            ("--num_machines", "2", "--machine_rank", "2", "--main_process_ip", "a"), "",
            "--machine_rank 2 of 2 machines", id="machine-rank",
        ),
        pytest.param(("--no_python",), "", "--no_python starts a program", id="no-python"),
        pytest.param(("--config_file", "absent.yaml"), "", "cannot read the config absent.yaml", id="no-file"),
        pytest.param(
            ("--config_file", "c.yaml"), "distributed_type: MULTI_GPU\nmax_restarts: 3",
            r"unknown keys \(\['max_restarts'\]\)", id="unknown-key",
        ),
        pytest.param(
            ("--config_file", "c.yaml"), "distributed_type: MULTI_GPU\nmixed_precision: no",
            "which YAML reads as False", id="unquoted-no",
        ),
        pytest.param(("--config_file", "c.yaml"), "a: [", "cannot read the config c.yaml", id="no-yaml"),
    ],
)  # fmt: skip
def test_clear_errors(
    arguments: tuple[str, ...], text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where accelerate would wait for ever, or end with a traceback, the error says what is wrong, and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(LaunchError, match=rf"(?s){problem}.*Next: "):
        words_of(*arguments, "train.py")


# Trains on every rank, saves after each step, and once loses one rank: the others are in the midst of a collective.
TRAIN = """
import os, signal, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

source, folder, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
accelerator = Accelerator()
torch.manual_seed(accelerator.process_index)
attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
planned = hasattr(model, "_safe_dtype_origin")
model = accelerator.prepare(model)
optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
saved = folder / "step.pt"
first = 0
if saved.exists():
    state = torch.load(saved)
    first = state["step"]
    accelerator.unwrap_model(model).load_state_dict(state["model"])
for step in range(first, 4):
    if attempt == 0 and step == kill_at and accelerator.process_index == accelerator.num_processes - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    tokens = torch.randint(0, 64, (2, 8), device=accelerator.device)
    accelerator.backward(model(input_ids=tokens, labels=tokens).loss)
    optimizer.step()
    optimizer.zero_grad()
    if accelerator.is_main_process:
        torch.save({"step": step + 1, "model": accelerator.unwrap_model(model).state_dict()}, f"{saved}.new")
        os.replace(f"{saved}.new", saved)
    accelerator.wait_for_everyone()
sums = accelerator.gather(sum(weight.double().sum() for weight in model.parameters()).detach().reshape(1))
accelerator.print(
    f"world={accelerator.num_processes} attempt={attempt} first={first} planned={planned} "
    f"precision={accelerator.mixed_precision} equal={len(set(sums.tolist())) == 1}"
)
accelerator.end_training()
"""


# What every launch has, at the least that imports cost: no model.
MEET = """
import sys
from accelerate import Accelerator
from accelerate.utils import gather_object

accelerator = Accelerator()
ranks = gather_object([accelerator.process_index])
hooked = gather_object([any(type(finder).__module__.startswith("safe_dtype.") for finder in sys.meta_path)])
accelerator.print(f"world={accelerator.num_processes} ranks={ranks} device={accelerator.device.type} hooked={hooked}")
accelerator.end_training()
"""


def line_of(launcher: list[str], script: str, folder: Path, *arguments: str, **settings: str) -> str:
    """Run a script to its end under `launcher`; return the only line of facts."""
    file = folder / "train.py"
    file.write_text(script)
    done = subprocess.run(
        [*launcher, str(file), *arguments],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-8000:]
    lines = re.findall(r"^world=.*$", done.stdout, re.MULTILINE)
    assert len(lines) == 1, done.stdout + done.stderr[-8000:]
    return str(lines[0])


def trained(launcher: list[str], saved: Saved, folder: Path, kill_at: int, **settings: str) -> str:
    """Train until the end under `launcher`; return the last attempt's line of facts."""
    return line_of(launcher, TRAIN, folder, str(saved()), str(folder), str(kill_at), **settings)


def config_of(folder: Path, processes: int, machines: int = 1) -> str:
    """Write the config of some processes on CPUs."""
    file = folder / f"of_{processes}.yaml"
    file.write_text(launch_config(fleet_named(["x86-64 CPU with AVX2"], processes, machines)).as_yaml())
    return str(file)


OURS = [sys.executable, "-m", "safe_dtype", "launch", "--config_file"]


@pytest.mark.slow
def test_processes_meet(tmp_path: Path) -> None:
    """Two processes come up under our config, each with the hook of `safe-dtype run`, and hear of one another."""
    line = line_of([*OURS, config_of(tmp_path, 2)], MEET, tmp_path)
    assert line == "world=2 ranks=[0, 1] device=cpu hooked=[True, True]"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_restart_after_a_killed_rank(processes: int, saved: Saved, tmp_path: Path) -> None:
    """A rank is killed in the midst of training: all come up again, once, and go on where they were."""
    line = trained([*OURS, config_of(tmp_path, processes)], saved, tmp_path, kill_at=2)
    assert line == f"world={processes} attempt=1 first=2 planned=True precision=no equal=True"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_plain_accelerate_launch(processes: int, saved: Saved, tmp_path: Path) -> None:
    """`accelerate launch --config_file ... -m safe_dtype.run` takes our configs as they are, with one setting."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_of(tmp_path, processes)]
    line = trained([*launcher, "-m", "safe_dtype.run"], saved, tmp_path, kill_at=-1, ACCELERATE_USE_CPU="true")
    assert line == f"world={processes} attempt=0 first=0 planned=True precision=no equal=True"
