"""Commands one after another, as one process: what a tool takes that waits until a machine is quiet. Of `peers_cpu.py`.

    python peer_turn.py COMMANDS.json SECONDS

Each line that it prints is that of one command: the last that the command has printed, or a problem.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def turn(commands: Path, seconds: float) -> None:
    """Run the commands of a file, each for so many seconds at most."""
    for command in json.loads(commands.read_text(encoding="utf-8")):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
            line = done.stdout.splitlines()[-1] if done.returncode == 0 else ""
            problem = "" if line else failure_of(done.returncode, done.stderr or done.stdout)
        except subprocess.TimeoutExpired:
            line, problem = "", f"it took more than {seconds:.0f} s"
        sys.stdout.write(f"{line or json.dumps({'problem': problem})}\n")
        sys.stdout.flush()


def failure_of(status: int, text: str) -> str:
    """Return how a process has failed, from its exit status and the last line of what it has said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"exit status {status}: {lines[-1][:300] if lines else 'it says nothing'}"


if __name__ == "__main__":
    turn(Path(sys.argv[1]), float(sys.argv[2]))
