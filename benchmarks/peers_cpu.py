"""Seconds for a prompt, milliseconds a token and peak memory of safe_dtype and of what a user could pick instead.

One checkpoint, a random Qwen3 of 0.6B's shape in bfloat16, is converted for each engine by that engine's own converter.
Each row runs in a process of its own, row after row and round after round, so that all of them meet the same machine;
each engine has a virtual environment that this script makes with pip, set up as any pip is. What cannot be installed,
converted or run within its time has a row that says why. The tokens are compared with those of transformers in float32:
where they part, the row says how near to each other the two tokens' logits are in float32.

    python benchmarks/peers_cpu.py --folder /tmp/peers

What is in the folder already is used again. It takes 25 GB and, the first time, an hour.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from generation import SHAPES, make_checkpoint
from peer_engines import ENGINES, Job
from peer_turn import failure_of
from results_file import write_results

ROOT = Path(__file__).resolve().parent.parent
CHILD = Path(__file__).with_name("peer_engines.py")


@dataclass(frozen=True)
class Environment:
    """What pip installs for an engine."""

    packages: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)  # of the process that installs
    without: tuple[str, ...] = ()  # what comes along, is not needed, and does not fit every build of torch


_TORCH = "torch==2.13.0"
_OURS = Environment(("-c", str(ROOT / "constraints.txt"), f"{ROOT}[fast]"))
ENVIRONMENTS = {
    "transformers": _OURS,
    "safe_dtype": _OURS,
    "llama.cpp, wheel": Environment(("xllamacpp", "gguf")),
    # Wheels are built for any processor; llama.cpp's documentation builds for the one that is there.
    "llama.cpp, built here": Environment(
        ("llama-cpp-python", "gguf"),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF", "FORCE_CMAKE": "1"},
    ),
    "CTranslate2": Environment(("ctranslate2", "transformers", _TORCH)),
    "OpenVINO": Environment(("openvino-genai", "optimum-intel[openvino]", _TORCH), without=("torchvision",)),
    "onnxruntime-genai": Environment(("onnxruntime-genai", "onnxruntime", "onnx-ir", "transformers", _TORCH)),
}


@dataclass(frozen=True)
class Row:
    """An engine in one of its formats."""

    engine: str
    variant: str
    weights: str  # in memory

    @property
    def name(self) -> str:
        """The row's folder and file."""
        return f"{self.engine} {self.variant}".replace(" ", "_").replace(",", "")


REFERENCE = Row("transformers", "float32", "float32")
ROWS = (
    REFERENCE,  # first: the others are compared with its tokens
    Row("transformers", "bfloat16", "bfloat16"),
    Row("safe_dtype", "auto", "bfloat16"),
    Row("llama.cpp, wheel", "BF16", "bfloat16"),
    Row("llama.cpp, wheel", "F16", "float16"),
    Row("llama.cpp, built here", "BF16", "bfloat16"),
    Row("llama.cpp, built here", "F16", "float16"),
    Row("CTranslate2", "bfloat16", "bfloat16"),
    Row("CTranslate2", "float32", "float32"),
    Row("OpenVINO", "fp16", "float16"),
    Row("OpenVINO", "fp16-f32", "float16 file"),
    Row("onnxruntime-genai", "fp16", "float16"),
    Row("onnxruntime-genai", "fp32", "float32"),
    Row("safe_dtype", "int8", "int8, by output"),
    Row("llama.cpp, wheel", "Q8_0", "int8, blocks of 32"),
    Row("llama.cpp, built here", "Q8_0", "int8, blocks of 32"),
    Row("CTranslate2", "int8_float32", "int8, by output"),
    Row("OpenVINO", "int8", "int8, by output"),
    Row("onnxruntime-genai", "int8", "int8, blocks of 128"),
)


@dataclass
class Bench:
    """A folder with environments, converted models and what was measured."""

    folder: Path
    through: Sequence[str]  # a command that every measured run is handed to
    seconds: float  # the most for one run
    slow_seconds: float  # the most for an installation, and for a conversion
    problems: dict[str, str] = field(default_factory=dict)  # by engine, and by row

    def python(self, engine: str) -> Path:
        """Return the interpreter of an engine."""
        return self.environment(engine) / "bin" / "python"

    def environment(self, engine: str) -> Path:
        """Return where the environment of an engine is; engines with the same packages share one."""
        first = next(name for name, environment in ENVIRONMENTS.items() if environment == ENVIRONMENTS[engine])
        return self.folder / "environments" / first.replace(", ", "_").replace(" ", "_")

    def install(self, engine: str) -> None:
        """Make the environment of an engine."""
        place = self.environment(engine)
        done = _mark_of(place)
        if done.exists():
            return
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        command = [self.python(engine), "-m", "pip", "install", "-q", *ENVIRONMENTS[engine].packages]
        problem = self._called(command, self.slow_seconds, ENVIRONMENTS[engine].settings)
        if without := ENVIRONMENTS[engine].without:
            self._called([self.python(engine), "-m", "pip", "uninstall", "-qy", *without], self.slow_seconds)
        if problem:
            self.problems[engine] = f"could not be installed: {problem}"
        else:
            done.touch()

    def convert(self, row: Row) -> None:
        """Convert the checkpoint for a row."""
        if ENGINES[row.engine].convert is None:
            return
        place = self.model(row)
        done = _mark_of(place)
        if done.exists():
            return
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        command = [
            self.python(row.engine),
            CHILD,
            "convert",
            row.engine,
            row.variant,
            self.folder / "checkpoint",
            place,
        ]
        if problem := self._called(command, self.slow_seconds):
            self.problems[row.name] = f"could not be converted: {problem}"
            shutil.rmtree(place, ignore_errors=True)
        else:
            done.touch()

    def model(self, row: Row) -> Path:
        """Return the folder that a row loads."""
        own = ENGINES[row.engine].convert is not None
        return self.folder / "models" / row.name if own else self.folder / "checkpoint"

    def turn(self, jobs: Mapping[Row, Path]) -> dict[Row, dict[str, Any]]:
        """Run rows one after another, each once, as one measured command; return what came of those that came to an end.

        Where that command is ended early, the rows after that are without a figure, and without a problem.
        """
        rows = [row for row in jobs if not self.problem(row)]
        runs = [
            [self.python(row.engine), CHILD, "run", row.engine, row.variant, self.model(row), jobs[row]]
            for row in rows
        ]
        if not rows:
            return {}
        plan = self.folder / "turn.json"
        plan.write_text(json.dumps([[str(part) for part in run] for run in runs]), encoding="utf-8")
        output: list[str] = []
        self._called(
            [*self.through, sys.executable, CHILD.with_name("peer_turn.py"), plan, self.seconds], self.slow_seconds,
            output=output,
        )  # fmt: skip
        measured = {}
        for row, line in zip(rows, output[0].splitlines() if output else (), strict=False):
            answer = json.loads(line)
            if problem := answer.get("problem"):
                self.problems[row.name] = f"could not run: {problem}"
            else:
                measured[row] = answer
        return measured

    def limits(self) -> dict[str, float]:
        """Return how fast memory is read, and products are computed, in the same quiet: see `generation.limits`."""
        output: list[str] = []
        script = Path(__file__).with_name("generation.py")
        if self._called(
            [*self.through, sys.executable, script, "--child", "limits"], self.slow_seconds, output=output
        ):
            return {}
        measured: dict[str, float] = json.loads(output[0].splitlines()[-1])
        return measured

    def problem(self, row: Row) -> str:
        """Return why a row has no figures; empty where it has."""
        return self.problems.get(row.engine) or self.problems.get(row.name, "")

    def _called(
        self, command: Sequence[object], seconds: float, settings: Mapping[str, str] | None = None,
        output: list[str] | None = None,
    ) -> str:  # fmt: skip
        """Run a command; return what it says of its failure, and empty where there is none."""
        threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        words = [str(part) for part in command]
        try:
            done = subprocess.run(
                words, env=os.environ | threads | dict(settings or {}), check=False, capture_output=True, text=True,
                timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it took more than {seconds:.0f} s"
        if output is not None:
            output.append(done.stdout)
        if done.returncode == 0:
            return ""
        return failure_of(done.returncode, done.stderr or done.stdout)


def _mark_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.done")


def parted(tokens: Sequence[int], reference: Sequence[int], logits: Any) -> dict[str, Any]:
    """Return how many of the first tokens are float32's, and how near the next one was to it.

    Args:
        tokens: Of a row.
        reference: Of float32.
        logits: Of float32, (steps, vocabulary).
    """
    equal = next(
        (place for place, pair in enumerate(zip(tokens, reference, strict=False)) if pair[0] != pair[1]),
        min(len(tokens), len(reference)),
    )
    if equal == len(reference):
        return {"equal_tokens": equal}
    if equal == len(tokens):
        return {"equal_tokens": equal, "short": True}
    step = logits[equal]
    own = step[tokens[equal]]
    return {
        "equal_tokens": equal,
        # In float32, and in standard deviations of that step's logits.
        "logits_apart": float(step[reference[equal]] - own),
        "deviations_apart": float((step[reference[equal]] - own) / step.std()),
        "rank_in_float32": int((step > own).sum()) + 1,
    }


def merged(row: Row, runs: Sequence[Mapping[str, Any]], problem: str, compared: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row of the result: the medians of its rounds."""
    if not runs:
        return {**asdict(row), "problem": problem}
    figures = ("load_seconds", "prompt_seconds", "token_seconds", "peak_bytes")
    return {
        **asdict(row),
        **{name: statistics.median(run[name] for run in runs) for name in figures},
        "rounds": [{name: run[name] for name in figures} for run in runs],
        "versions": runs[0]["versions"],
        **compared,
    }


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the documentation."""
    lines = [
        "| engine, format | weights in memory | prompt | token | peak | float32's tokens |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        start = f"| {row['engine']}, {row['variant']} | {row['weights']} |"
        if row.get("problem"):
            lines.append(f"{start} {row['problem']} ||||")
            continue
        apart = f", then {row['deviations_apart']:.2g} sd" if "deviations_apart" in row else ""
        lines.append(
            f"{start} {row['prompt_seconds']:.2f} s | {row['token_seconds'] * 1e3:.0f} ms | "
            f"{row['peak_bytes'] / 1e6:,.0f} MB | {row['equal_tokens']}{apart} |"
        )
    return "\n".join(lines)


@click.command()
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="For all that is made."
)
@click.option("--sizes", type=(int, int, int), default=(512, 64, 3), show_default=True, help="Prompt, new, rounds.")
@click.option("--only", multiple=True, type=click.Choice(list(ENGINES)), help="Of these engines, beside float32.")
@click.option("--prepare", is_flag=True, help="Install and convert, and measure nothing.")
@click.option("--together", default=3, show_default=True, help="How many rows that command is handed at once.")
@click.option("--through", default="", help="A command that each run is handed to: it waits for a quiet machine.")
@click.option(
    "--seconds", default=(90.0, 1800.0), type=(float, float), show_default=True, help="Of a run; of all else."
)
@click.option("--name", default="peers_cpu", show_default=True, help="Of the result file.")
def main(  # noqa: PLR0913  # each is an option
    *, folder: Path, sizes: tuple[int, int, int], only: tuple[str, ...], prepare: bool, through: str, together: int,
    seconds: tuple[float, float], name: str,
) -> None:  # fmt: skip
    """Prepare every engine, run all rows in turns, compare their tokens, and write the result."""
    import torch

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, shlex.split(through), *seconds)
    rows = [row for row in ROWS if not only or row.engine in only or row == REFERENCE]
    if not _mark_of(folder / "checkpoint").exists():
        make_checkpoint(folder / "checkpoint", "bfloat16")
        _sharpen(folder / "checkpoint")
        _mark_of(folder / "checkpoint").touch()
    for row in rows:
        click.echo(f"preparing {row.name}", err=True)
        bench.install(row.engine)
        if not bench.problem(row):
            bench.convert(row)
    if prepare:
        click.echo(json.dumps(bench.problems, indent=1))
        return
    prompt_tokens, new_tokens, rounds = sizes
    job = _job(folder, prompt_tokens, new_tokens)
    runs: dict[Row, list[dict[str, Any]]] = {row: [] for row in rows}
    for number in range(rounds):
        due = {row: job[row == REFERENCE and number == 0] for row in rows}
        while due:
            measured = bench.turn(dict(list(due.items())[:together]))
            for row, run in measured.items():
                runs[row].append(run)
                click.echo(f"{number} {row.name}: {run['prompt_seconds']:.2f} s, "
                           f"{run['token_seconds'] * 1e3:.0f} ms", err=True)  # fmt: skip
            left = {row: file for row, file in due.items() if row not in measured and not bench.problem(row)}
            if left and len(left) == len(due):
                bench.problems[next(iter(left)).name] = "could not run: it was ended"
            due = left
    reference, logits = runs[REFERENCE][0]["tokens"], torch.load(folder / "logits.pt")
    table = [
        merged(
            row, runs[row], bench.problem(row), parted(runs[row][0]["tokens"], reference, logits) if runs[row] else {}
        )
        for row in rows
    ]
    figures = {
        "shape": dict(zip(("layers", "hidden", "intermediate", "heads", "key_value_heads", "vocabulary"), SHAPES["0.6B"], strict=True)),
        "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds, "threads": os.cpu_count(),
        "limits": bench.limits(), "rows": table,
    }  # fmt: skip
    click.echo(write_results(name, figures))
    click.echo(as_markdown(table))


def _sharpen(checkpoint: Path) -> None:
    """Let each head attend to few positions: of random weights all texts else end in one token, whatever came before."""
    from safetensors.torch import load_file, save_file

    for shard in checkpoint.glob("*.safetensors"):
        tensors = load_file(shard)
        save_file(
            {name: one * 4 if "q_norm" in name else one for name, one in tensors.items()}, shard, {"format": "pt"}
        )


def _job(folder: Path, prompt_tokens: int, new_tokens: int) -> dict[bool, Path]:
    """Write what is to be generated; under True with the logits of every step."""
    numbers = random.Random(1)
    prompt = [numbers.randrange(100, SHAPES["0.6B"][-1]) for _ in range(prompt_tokens)]
    files = {}
    for with_logits, logits in ((False, ""), (True, str(folder / "logits.pt"))):
        files[with_logits] = folder / f"job{'_with_logits' * with_logits}.json"
        files[with_logits].write_text(json.dumps(asdict(Job(prompt, new_tokens, os.cpu_count() or 1, logits))))
    return files


if __name__ == "__main__":
    sys.exit(main())
