"""Which process is a rank: the one that the launcher has started, and none that it starts in turn with its variables.

Nothing but `os` is imported: every Python of a job that is patched begins with this.
"""

import os

MARK = "SAFE_DTYPE_RANK"  # in the environment: the process that is a rank, and of which launch
# What a launcher sets. The last ones tell a rank from the launcher itself, where a cluster gives that such variables too.
_LAUNCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


def mark_rank() -> None:
    """Take this process for the rank that the launcher's variables name, unless one that has started it is that rank."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and not _names_this_launch():
        os.environ[MARK] = f"{os.getpid()} {_launch()}"


def is_started_by_rank() -> bool:
    """Whether the rank that the launcher's variables name is another process, which has started this one."""
    return _names_this_launch() and os.environ[MARK].partition(" ")[0] != str(os.getpid())


def _names_this_launch() -> bool:
    return os.environ.get(MARK, "").partition(" ")[2] == _launch()


def _launch() -> str:
    return " ".join(os.environ.get(name, "") for name in _LAUNCH)
