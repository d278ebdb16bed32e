"""`safe-dtype launch`: accelerate's own launch, of a script that is planned and guarded, with restarts that come up."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from safe_dtype.errors import LaunchError
from safe_dtype.processes.rank_process import MARK

from .ready_configs import config_file, ready_names

RESTARTS = 3  # of all processes together, where one ends with an error
_SECONDS_TO_START = 300  # that the machines of one job may start apart
_PORT = 29500  # accelerate's default
# That of accelerate, and no restart after an error of the program.
_LAUNCHER = "safe_dtype.integrations.accelerate.restarting_launch"
_MODULE = "safe_dtype.run"  # as `python -m`: plans and guards every model of the script


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of `accelerate launch`."""

    arguments: tuple[str, ...]  # after `python`
    settings: tuple[tuple[str, str], ...]  # environment variables that are set for it, and for what it starts
    script: str
    is_module: bool = False  # and no file

    def __str__(self) -> str:
        words = [f"{name}={shlex.quote(value)}" for name, value in self.settings]
        return " ".join([*words, shlex.join(["python", *self.arguments])])

    def become(self) -> None:
        """Replace this process by it: signals and exit statuses are accelerate's own.

        Raises:
            LaunchError: If the script is not there: every rank would end with that.
        """
        self._require_script()
        environment = {**os.environ, **dict(self.settings)}
        environment.pop(MARK, None)  # what it starts are the ranks, not this process
        command = [sys.executable, *self.arguments]
        if (
            os.name == "nt"
        ):  # exec would start a second process there, and the shell would go on with the end of this one
            import subprocess

            sys.exit(subprocess.run(command, env=environment, check=False).returncode)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, command, environment)

    def _require_script(self) -> None:
        if not self.is_module and not Path(self.script).exists():
            raise LaunchError(
                f"{self.script} is not there, in {Path.cwd()}",
                "name the script after all options of `accelerate launch`, each of which has its value behind it",
            )
        if (
            self.is_module
            and PathFinder.find_spec(self.script.partition(".")[0], [str(Path.cwd()), *sys.path]) is None
        ):
            raise LaunchError(f"There is no module {self.script}", "check its name, and start where Python finds it")


def launch_of(arguments: Sequence[str], environment: Mapping[str, str], run_options: Sequence[str] = ()) -> Launch:
    """Return how to start the script in `arguments`, which are those of `accelerate launch`; what they say is kept.

    What they leave open is set: restarts, a rendezvous that comes up again after one, and CPUs as accelerate needs to
    be told of them. A ready config may be given by its name. `run_options` are those of `safe-dtype run`.

    Raises:
        LaunchError: If accelerate would wait for ever, or start something else than was asked for.
        SystemExit: If accelerate cannot read the arguments; it has said why on stderr.
    """
    order = _Order.read(arguments)
    _require_processes(order)
    _require_devices(order)
    added = [*_restart_options(order), *_rendezvous_options(order)]
    options = list(order.options)
    if order.uses_processors:
        # With --cpu accelerate starts one process, however many it is asked for.
        options = [word for word in options if word != "--cpu"]
        added += _processor_options(order, environment)
    if not order.asked.module:
        added.append("-m")
    script = [_MODULE, *run_options, *(["-m"] if order.asked.module else []), *order.script]
    settings = {**_rendezvous_settings(order), **({"ACCELERATE_USE_CPU": "true"} if order.uses_processors else {})}
    return Launch(
        ("-m", _LAUNCHER, *options, *added, *script),
        tuple((name, value) for name, value in settings.items() if name not in environment),
        order.script[0],
        bool(order.asked.module),
    )


@dataclass(frozen=True, slots=True)
class _Order:
    """What the arguments and their config file ask for."""

    options: tuple[str, ...]  # of accelerate
    script: tuple[str, ...]  # with its own arguments
    asked: Any  # accelerate's reading of the arguments
    config: Any  # accelerate's `ClusterConfig`; None where there is no file

    @classmethod
    def read(cls, arguments: Sequence[str]) -> _Order:
        from accelerate.commands.launch import launch_command_parser

        asked = launch_command_parser().parse_args(list(arguments))
        if asked.no_python:
            raise LaunchError(
                "--no_python starts a program in which safe_dtype cannot plan models",
                "leave it out, or use `accelerate launch`",
            )
        split = len(arguments) - 1 - len(asked.training_script_args)
        options = arguments[:split]
        if options and options[-1] == "--":
            options = options[:-1]
        file = str(config_file(asked.config_file)) if _is_ready(asked.config_file) else asked.config_file
        named = [_with_the_file(word, asked.config_file, file) for word in options] if file else options
        return cls(tuple(named), tuple(arguments[split:]), asked, _config(file))

    def value(self, name: str, default: Any = None) -> Any:
        """Return what the command line says, else the file, else `default`."""
        for source in (self.asked, self.config):
            value = getattr(source, name, None)
            if value is not None:
                return value
        return default

    def says(self, name: str) -> bool:
        """Whether the command line names an option, be it with its default."""
        return name in getattr(self.asked, "nondefault", ())

    @property
    def machines(self) -> int:
        return int(self.value("num_machines", 1))

    @property
    def processes(self) -> int:
        return int(self.value("num_processes", 1))

    @property
    def uses_processors(self) -> bool:
        """Whether several processes are to run on CPUs, and without mpirun, which has a way of its own."""
        of_file = self.config is not None and (self.config.use_cpu or _type(self.config) == "MULTI_CPU")
        return bool((self.asked.cpu or of_file) and self.processes > 1 and not self.uses_mpirun)

    @property
    def uses_mpirun(self) -> bool:
        """Whether mpirun starts the processes."""
        return bool(self.value("mpirun_hostfile") or (self.config is not None and self.config.mpirun_config))


def _is_ready(name: str | None) -> bool:
    return name in ready_names() and not Path(str(name)).exists()


def _with_the_file(word: str, name: str, file: str) -> str:
    """Return one word of the options, where it names a ready config with the file of that one."""
    option, is_joined, value = word.partition("=")
    if word == name:
        return file
    return f"{option}={file}" if is_joined and value == name and "--config_file".startswith(option) else word


def _require_processes(order: _Order) -> None:
    for option in ("num_processes", "num_machines"):
        count = getattr(order.asked, option)
        if count is not None and count < 1:
            raise LaunchError(f"--{option} {count} starts nothing", f"pass --{option} 1 or more, or leave it out")
    if order.uses_mpirun or order.machines == 1:
        return
    if order.value("num_processes") is not None and order.processes % order.machines:
        raise LaunchError(
            f"{order.processes} processes on {order.machines} machines: accelerate starts equally many on each, and would "
            f"start {order.processes // order.machines * order.machines}",
            "pass --num_processes, of all machines together, as a multiple of --num_machines",
        )
    rank = int(order.value("machine_rank", 0))
    if not 0 <= rank < order.machines:
        raise LaunchError(
            f"--machine_rank {rank} of {order.machines} machines: the others would wait for one that never comes",
            f"count the machines from 0 to {order.machines - 1}, with machine 0 at --main_process_ip",
        )


def _require_devices(order: _Order) -> None:
    """Refuse an engine of GPUs where there are none: accelerate would start something else, or fail late."""
    asked, config = order.asked, order.config
    engine = "--use_deepspeed" if asked.use_deepspeed else "--use_fsdp" if asked.use_fsdp else ""
    of_mac = sys.platform == "darwin" or (_is_ready(asked.config_file) and asked.config_file == "mac")
    if engine and (of_mac or asked.cpu or (config is not None and config.use_cpu)):
        place = "a Mac" if of_mac else "CPUs"
        raise LaunchError(
            f"{engine} needs GPUs or their like: on {place} accelerate would run something else",
            "leave it out, for plain data parallel",
        )


def _config(file: str | None) -> Any:
    """Return the config that accelerate will read, as it reads it; None where there is none.

    Raises:
        LaunchError: If it cannot be read.
    """
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    path = file or default_config_file
    if file is None and not Path(path).is_file():
        return None
    try:
        config = load_config_from_file(path)
    except Exception as exc:
        raise LaunchError(
            f"accelerate cannot read the config {path}: {' '.join(str(exc).split())}",
            f"write one with `safe-dtype accelerate-config > config.yaml`, or name one of {', '.join(ready_names())}",
        ) from exc
    if isinstance(config.mixed_precision, bool):
        raise LaunchError(f"{path} has `mixed_precision: no`, which YAML reads as False", 'write "no" in quotes')
    return config


def _type(config: Any) -> str:
    return str(getattr(config.distributed_type, "value", config.distributed_type))


def _restart_options(order: _Order) -> list[str]:
    return [] if order.says("max_restarts") else ["--max_restarts", str(RESTARTS)]


def _rendezvous_options(order: _Order) -> list[str]:
    """Return the options of a rendezvous that takes place anew at every restart.

    With a static one the processes of a restart read what those before left in the store: they connect to ports that
    are gone, or wait for ever (pytorch#135712; 2 of 10 restarts came up). A config file cannot say so: accelerate
    ignores it there.
    """
    if order.says("rdzv_backend"):
        return []
    options = ["--rdzv_backend", "c10d"]
    if order.machines > 1 and order.value("main_process_ip") is None:
        raise LaunchError(
            f"{order.machines} machines, and no address where they meet",
            "pass --main_process_ip ADDRESS of machine 0, and --machine_rank 0, 1, ... on each of them",
        )
    if order.machines > 1 and not order.says("rdzv_conf"):
        # Said, and not guessed from host names: a name of Kubernetes or Slurm need not be that of the machine.
        is_host = str(int(order.value("machine_rank", 0)) == 0).lower()
        options += ["--rdzv_conf", f"is_host={is_host},read_timeout={_SECONDS_TO_START}"]
    return options


def _processor_options(order: _Order, environment: Mapping[str, str]) -> list[str]:
    """Return the options with which accelerate starts several processes on CPUs: it is told of GPUs."""
    options = (
        []
        if order.asked.multi_gpu or (order.config is not None and _type(order.config) == "MULTI_GPU")
        else ["--multi_gpu"]
    )
    divided = order.config is not None and order.config.use_cpu  # by accelerate
    if not (divided or order.says("num_cpu_threads_per_process") or "OMP_NUM_THREADS" in environment):
        import psutil

        cores = psutil.cpu_count(logical=False) or 1
        local = max(1, order.processes // order.machines)
        options += ["--num_cpu_threads_per_process", str(max(1, cores // local))]
    return options


def _rendezvous_settings(order: _Order) -> dict[str, str]:
    if order.says("rdzv_backend"):
        return {}
    settings = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # a store of its own for each attempt
    if order.machines == 1:
        # A free port, and no host name to resolve: several jobs may run side by side.
        return {**settings, "PET_STANDALONE": "1", "PET_LOCAL_ADDR": "127.0.0.1"}
    if order.asked.same_network:  # then accelerate names no endpoint
        port = order.value("main_process_port", _PORT)
        settings["PET_RDZV_ENDPOINT"] = f"{order.value('main_process_ip')}:{port}"
    return settings
