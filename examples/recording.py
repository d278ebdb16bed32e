"""Jobs of an example: run by name, recorded for the documents, and shown there with their code. Scripts share it."""

import inspect
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
Job = Callable[[], None]


def say(text: object) -> None:
    """Print one line, before anything that a child prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def shell(command: str, **environment: str) -> None:
    """Run a command as typed in a shell, with the programs that were installed beside this Python."""
    say("$ " + " ".join([*(f"{name}={value}" for name, value in environment.items()), command]))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(shlex.split(command), check=True, env=os.environ | environment | {"PATH": path})


def run(jobs: Sequence[Job], names: Sequence[str], folder: str = "") -> None:
    """Run the jobs that are named, or all, each in a folder of its own that goes afterwards, or all in `folder`."""
    by_name = {job.__name__: job for job in jobs}
    if unknown := set(names) - set(by_name):
        sys.exit(f"no such job: {', '.join(sorted(unknown))}. There are: {', '.join(by_name)}")
    for name in names or by_name:
        say(f"== {name}: {inspect.getdoc(by_name[name])}")
        with tempfile.TemporaryDirectory() as own:
            place = Path(folder or own)
            if not (place / "examples").exists():
                (place / "examples").symlink_to(HERE)
            os.chdir(place)
            by_name[name]()
            os.chdir(HERE)


def record(script: Path, job: Job, *options: str, environment: Mapping[str, str] = {}) -> str:
    """Return what `job` prints in a process of its own, without the folders of this machine."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::FutureWarning", script, job.__name__, *options], check=True, text=True,
        env={**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    printed = done.stdout.split("\n", 1)[1].replace(f"{HERE}{os.sep}", "examples/")
    printed = printed.replace(sysconfig.get_path("purelib"), "site-packages")
    return re.sub(re.escape(tempfile.gettempdir()) + r"/[^/\s]+/", "", printed)


def keep(script: Path, job: Job, printed: str) -> None:
    """Write what a job has printed to where `section` finds it: a folder that is called as the script."""
    folder = HERE / script.stem
    folder.mkdir(exist_ok=True)
    (folder / f"{job.__name__}.txt").write_text(printed, encoding="utf-8")


def section(script: str, job: Job, title: str = "") -> str:
    """Return a job in Markdown: its title, else its name; what it is for, its code, and what was seen."""
    doc = inspect.getdoc(job)
    body = textwrap.dedent(inspect.getsource(job).split('"""', 2)[2].lstrip("\n"))
    seen = (HERE / script / f"{job.__name__}.txt").read_text(encoding="utf-8")
    return f"## {title or job.__name__}\n\n{doc}\n\n```py\n{body}```\n\n```text\n{seen}```\n\n"
