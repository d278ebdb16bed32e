"""A process of several ranks ends with its own exit status."""

import os
import subprocess
import sys

import pytest

# A thread of gloo is in the middle of something in Python when the script ends.
SCRIPT = """
import sys, tempfile, threading, time
import torch
import torch.distributed as dist
{first}
dist.init_process_group("gloo", init_method=f"file://{{tempfile.mkdtemp()}}/store", rank=0, world_size=1)
begun = threading.Event()
def slow(future):
    begun.set()
    time.sleep(0.01)
dist.all_reduce(torch.ones(4), async_op=True).get_future().then(slow)
begun.wait()
sys.exit(3)
"""


def _status(first: str, **environment: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(first=first)],
        env=os.environ | environment,
        capture_output=True,
        check=False,
    ).returncode


@pytest.mark.parametrize(
    ("first", "size"),
    [
        ("from safe_dtype.processes.quiet_exit import exit_quietly as end; end(); end()", "1"),
        ("import safe_dtype; safe_dtype.patch()", "2"),
    ],
    ids=["connected", "launched and patched"],
)
def test_a_job_that_is_done(first: str, size: str):
    """It ends with the status that the script gave."""
    assert _status(first, WORLD_SIZE=size) == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="newer Pythons leave such a thread alone")
def test_without_it_the_process_aborts():
    """What is held against: Python ends the thread inside of C++."""
    assert -6 in {_status("pass") for _ in range(6)}, "exit_quietly is not needed any more"
