"""Code that is compiled once, and remembered for this CPU."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from processes.test_forked_lock import status_of_child

from safe_dtype.kernels import machine_code
from safe_dtype.store import entries

pytest.importorskip("llvmlite", reason="the extra `fast`")

MULTIPLY = """
import sys
import torch
from safe_dtype.kernels import machine_code
from safe_dtype.kernels.row_product import multiply_rows
print(float(multiply_rows(torch.ones(1, 8), torch.ones(3, 8)).sum()), "safe_dtype.kernels.row_product_ir" in sys.modules)
"""


def multiplied(**environment: str) -> str:
    """Multiply in a process of its own; return the sum of the result, and whether anything was compiled."""
    done = subprocess.run(
        [sys.executable, "-c", MULTIPLY],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def kernels() -> list[Mapping[str, object]]:
    """Return the keys of the code that is remembered."""
    return [one.key for one in entries() if "kernel" in one.key]


def test_second_process_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process compiled, the next one loads, without so much as the writer of the code; another CPU's it does not."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    assert multiplied() == "24.0 True"
    assert multiplied() == "24.0 False"
    assert len(kernels()) == 1
    (file,) = tmp_path.glob("*.json")
    entry = json.loads(file.read_text())
    assert len(base64.b64decode(entry["code"])) > 1000
    assert multiplied(ATEN_CPU_CAPABILITY="default") == "24.0 True"
    assert len({str(key["features"]) for key in kernels()}) == len(kernels())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the owner of a file is asked for on POSIX")
def test_code_that_others_can_write_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in a folder that everybody may write to is compiled anew; so is code that was damaged."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    multiplied()
    tmp_path.chmod(0o777)
    assert multiplied() == "24.0 True"
    tmp_path.chmod(0o755)
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text().replace('"code": "', '"code": "AAAA'))
    assert multiplied() == "24.0 True"
    assert multiplied() == "24.0 False"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "AAAA" * 20, "digest": ""}))
    assert multiplied() == "24.0 True"


def test_a_machine_that_llvm_does_not_know(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """There is no code for it, which is said once; nothing is raised where a model is loaded."""
    here = machine_code.target()
    assert here is not None
    monkeypatch.setattr(machine_code, "target", lambda: replace(here, triple="nonsense-unknown-none"))
    for _ in range(2):
        assert machine_code.address_of("multiply_rows", "row_product_ir", "float32", "float32") is None
    assert len([record for record in caplog.records if "nonsense" in record.getMessage()]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are Unix")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads is what this is about
def test_a_fork_while_another_thread_compiles() -> None:
    """There is no code in it but what was loaded before: LLVM's locks are held by a thread that it has not."""
    known = machine_code.address_of("run_program", "programs.program_ir")
    inside, go_on = threading.Event(), threading.Event()

    def compile_something() -> None:
        with machine_code._lock:
            inside.set()
            go_on.wait(20)

    def look() -> None:
        assert machine_code.address_of("run_program", "programs.program_ir") == known
        assert machine_code.address_of("multiply_rows", "row_product_ir", "float32", "float32", "4") is None

    thread = threading.Thread(target=compile_something)
    thread.start()
    try:
        inside.wait(20)
        assert status_of_child(look) == 3
    finally:
        go_on.set()
        thread.join()


def groups_to_give_to() -> list[int]:
    """Return the groups that this user may give a file to; for root also one that is nobody's own."""
    import grp

    others = [entry.gr_gid for entry in grp.getgrall() if entry.gr_name in ("users", "nogroup")]
    return [*{os.getgid(), *os.getgroups()}, *(others if os.getuid() == 0 else [])]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the owner of a file is asked for on POSIX")
def test_code_that_a_group_can_write_is_not_run(tmp_path: Path) -> None:
    """In the group of a file or a folder there may be others, but for root's own group and the user's own."""
    import grp
    import pwd

    file, user = tmp_path / "code.json", pwd.getpwuid(os.getuid()).pw_name
    file.touch()
    for group in groups_to_give_to():
        entry = grp.getgrgid(group)
        is_own = group == 0 or (entry.gr_name == user and set(entry.gr_mem) <= {user})
        for place in (file, tmp_path):
            os.chown(place, -1, group)
            place.chmod(0o770)
            assert machine_code._is_ours(file) == is_own
            place.chmod(0o740)
            assert machine_code._is_ours(file)


@pytest.mark.needs("pagemap")
def test_the_compiler_takes_no_memory_afterwards() -> None:
    """Of the pages of LLVM's library, which a process reads to load code, none stay but those that it has written to."""
    # In a form that no other test has loaded.
    assert machine_code.address_of("multiply_rows", "row_product_ir", "float32", "float32", "2")
    name, sizes = "", {"Rss": 0, "Private_Dirty": 0}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        name = line if "-" in first and not first.endswith(":") else name
        if "libllvmlite" in name and first.rstrip(":") in sizes:
            sizes[first.rstrip(":")] += int(rest[0])
    assert sizes["Rss"] == sizes["Private_Dirty"] < 4096  # kB
