"""One rank of `processes.run_ranks`: joins the group, calls the function, leaves its result in a file.

python -m ranks.rank FOLDER RANK
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import pickle
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any


def begin_forked(folder: Path, rank: int, output: Path, environment: Mapping[str, str], working: Path) -> None:
    """Be a rank in a process that was forked: with a session, an output and an environment of its own."""
    from forked import begin_apart  # a rank of its own interpreter needs nothing of it

    begin_apart(output, working, environment)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    be_rank(folder, rank)


def be_rank(folder: Path, rank: int) -> None:
    """Do what `folder` holds as this rank; end the process with status 1 where that raises."""
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    call = pickle.loads((folder / "call").read_bytes())
    launch = call["launch"]
    faulthandler.dump_traceback_later(launch.seconds + 20, exit=True, file=2)  # where nobody is left who would kill it
    value, error = None, None
    try:
        value = _called(*call["function"], call["arguments"], launch.group_seconds if launch.joins else None)
    except BaseException as exc:  # noqa: BLE001  (SystemExit is a way for a rank to end as well)
        error = None if isinstance(exc, SystemExit) else traceback.format_exc()
        status = exc.code if isinstance(exc, SystemExit) and isinstance(exc.code, int) else 1
    else:
        status = 0
    unnamed = folder / f"unfinished {rank}"
    unnamed.write_bytes(pickle.dumps((value, error)))
    unnamed.rename(folder / f"result {rank}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a group that lost a member may wait for it while it is taken down


def _called(place: str, name: str, arguments: tuple[Any, ...], group_seconds: float | None) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if group_seconds is not None:
        dist.init_process_group("gloo", timeout=timedelta(seconds=group_seconds))
    if not name:
        sys.argv = [place, *map(str, arguments)]
        runpy.run_path(place, run_name="__main__")
        value = None
    else:
        function: Callable[..., Any] = reduce(getattr, name.split("."), importlib.import_module(place))
        value = function(*arguments)
    if group_seconds is not None and dist.is_initialized():
        dist.barrier()  # rank 0 holds the store: it leaves when nobody needs it any more
        dist.destroy_process_group()
    return value


if __name__ == "__main__":
    be_rank(Path(sys.argv[1]), int(sys.argv[2]))
