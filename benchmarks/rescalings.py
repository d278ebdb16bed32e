"""How many architectures of transformers have exact rescalings: a twin of each is built, and its gauges are proved.

    python benchmarks/rescalings.py                  # all types, from default configs, about 15 minutes
    python benchmarks/rescalings.py llama gpt_oss    # some, and nothing is written

The table says of each type whether its hidden states can be rescaled in every block, by which moves, whether float32
and bfloat16 then give the same bits, how many of a few spoilt gauges (a move left out, a power off by one, another
target) float32 tells from the right one, whether the gauges fit a model of the real size, and the seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import click
import torch
import transformers
from results_file import write_results
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from safe_dtype.facts import Gauge, Move, summary
from safe_dtype.rescaling.discovery.discover import Discovery, discover, fitted
from safe_dtype.rescaling.discovery.proof import Prover
from safe_dtype.rescaling.discovery.twin import Twin, TwinError, make_twin, run_twin

MAPPINGS = {
    "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING),
    "seq2seq": (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    ),
}


MUTATIONS = 10  # of each architecture
SEEN_BY_FLOAT32 = 2.0**-23  # what changes less than this, of the largest output, is below float32's rounding


class TimeUpError(Exception):
    """A type took longer than its limit."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeUpError after so many seconds, where the platform can."""

    def stop(*_: object) -> None:
        raise TimeUpError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def examine(kind: str, model_type: str) -> dict[str, Any]:
    """Build the twin of one type from its default config, and say how it went."""
    row: dict[str, Any] = {"mapping": kind, "type": model_type, "status": "ok"}
    try:
        config = transformers.CONFIG_MAPPING[model_type]()
        model_class = MAPPINGS[kind][1][type(config)]
        model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    except Exception as exc:  # noqa: BLE001  # foreign code over its own default: a row of the table, whatever it is
        return row | {"status": "no-config", "reason": f"{type(exc).__name__}: {exc}"[:300]}
    started = time.perf_counter()
    try:
        twin = make_twin(model_class, config)
        row["seconds"] = round(time.perf_counter() - started, 3)
        started = time.perf_counter()
        with torch.no_grad():
            row["rms"] = float(run_twin(twin.model, twin.batches[1]).square().mean().sqrt())
        row["forward_seconds"] = round(time.perf_counter() - started, 4)
        row["parameters"] = sum(one.numel() for one in twin.model.parameters())
        row |= rescalings(twin, model_class, config)
    except TwinError as exc:
        row |= {"status": "no-twin", "reason": exc.reason[:400], "seconds": round(time.perf_counter() - started, 3)}
    return row


def rescalings(twin: Twin, model_class: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, Any]:
    """Discover what there is, spoil it, and transfer it to a model of the real size."""
    started, cpu = time.perf_counter(), time.process_time()
    try:
        found = discover(twin)
    except Exception as exc:  # noqa: BLE001  # foreign code in float64 and backwards: a row of the table as well
        return {"status": "failed", "reason": f"{type(exc).__name__}: {exc}"[:400]}
    residual = [one for one in found.proved if one.stack is not None]
    wanted = [stack for stack in found.traced.stacks if not stack.normalised]
    complete = bool(residual) and len(residual) == len(wanted)
    row: dict[str, Any] = {
        "status": "normalised" if found.trivial else "rescaled" if complete else "refused",
        "reason": "; ".join(found.problems)[:400],
        "discovery_seconds": round(time.perf_counter() - started, 3),
        "discovery_cpu_seconds": round(time.process_time() - cpu, 3),
        "blocks": sum(one.proof.blocks for one in residual),
        "covered": sum(one.proof.covered for one in residual),
        "max_rel_error_float64": max((one.proof.max_rel_error for one in residual), default=None),
        "bitwise_float32": all(one.proof.bitwise_float32 for one in residual),
        "bitwise_bfloat16": all(one.proof.bitwise_bfloat16 for one in residual),
        "moves": {one.gauge.name: summary(one.gauge, 1) for one in residual},
        "interior": [one.gauge.name for one in found.proved if one.stack is None],
    }
    return row | spoilt(twin, found) | transferred(twin, found, model_class, config)


def spoilt(twin: Twin, found: Discovery) -> dict[str, Any]:
    """Spoil the gauges in a few ways, and count how often float32 tells the outputs apart."""
    prover = Prover(twin)
    candidates = [(one.gauge, place) for one in found.proved for place in range(len(one.gauge.moves))]
    chance = random.Random(0)
    counts = Counter({"caught": 0, "harmless": 0, "missed": 0})
    for gauge, place in chance.sample(candidates, min(MUTATIONS, len(candidates))):
        mutant = mutated(gauge, place, chance)
        proof = prover.prove(mutant)
        if not proof.bitwise_float32:
            counts["caught"] += 1
        else:
            counts["missed" if proof.max_rel_error > SEEN_BY_FLOAT32 else "harmless"] += 1
    return {f"mutations_{name}": count for name, count in counts.items()}


def mutated(gauge: Gauge, place: int, chance: random.Random) -> Gauge:
    """Leave one move out, or change its power by one, or apply it to the target of another move of its part."""
    moves = list(gauge.moves)
    move: Move = moves.pop(place)
    others = [one.target for one in moves if one.part is move.part and one.target != move.target]
    ways = ["drop", "more", "less", *(["elsewhere"] if others else [])]
    way = chance.choice(ways)
    if way == "elsewhere":
        moves.append(replace(move, target=chance.choice(others)))
    elif way != "drop":
        moves.append(replace(move, power=move.power + (1 if way == "more" else -1)))
    return Gauge(gauge.name, tuple(moves))


def transferred(
    twin: Twin, found: Discovery, model_class: type[PreTrainedModel], config: PretrainedConfig
) -> dict[str, Any]:
    """Transfer every gauge to a model of the real size, without its weights."""
    try:
        with torch.device("meta"):
            model = model_class._from_config(config)
    except Exception as exc:  # noqa: BLE001  # not every class can be built without memory
        return {"transfer": f"not built: {type(exc).__name__}"}
    started = time.perf_counter()
    real = [fitted(one, found.traced, twin.model, model) for one in found.proved]
    lost = [text for text in real if isinstance(text, str)]
    residual = [text for one, text in zip(found.proved, real, strict=True) if one.stack and isinstance(text, str)]
    return {
        "transfer": "; ".join(residual)[:300] or "ok",
        "interior_not_transferred": [text[:200] for text in lost if text not in residual],
        "transferred_moves": sum(len(one.moves) for one in real if isinstance(one, Gauge)),
        "transfer_seconds": round(time.perf_counter() - started, 3),
    }


def line(row: dict[str, Any]) -> str:
    """Return a row of the table for people."""
    coverage = f"{row.get('covered', 0)}/{row.get('blocks', 0)}"
    bits = "".join("=" if row.get(name) else "-" for name in ("bitwise_float32", "bitwise_bfloat16"))
    mutants = "/".join(str(row.get(f"mutations_{name}", "")) for name in ("caught", "harmless", "missed"))
    numbers = (
        f"{row.get('seconds', 0):6.2f} s {row.get('discovery_cpu_seconds', 0):6.2f} s {row.get('parameters', 0):8d}"
    )
    return (
        f"{row['mapping']:8s} {row['type']:26s} {row['status']:10s} {coverage:>6s} {bits} {mutants:8s} {numbers} "
        f"+{len(row.get('interior', ()))} {row.get('reason', '')[:150]!r} {row.get('transfer', '')[:120]}"
    )


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many types there are of each status, and the sums and medians of the rest."""
    timed = [row["discovery_cpu_seconds"] for row in rows if "discovery_cpu_seconds" in row]
    twins = [row["seconds"] for row in rows if "seconds" in row]
    return {
        "types": len(rows),
        "status": dict(Counter(row["status"] for row in rows)),
        "transferred": sum(row.get("transfer") == "ok" for row in rows if row["status"] == "rescaled"),
        "mutations": {
            name: sum(row.get(f"mutations_{name}", 0) for row in rows) for name in ("caught", "harmless", "missed")
        },
        "median_twin_seconds": statistics.median(twins) if twins else None,
        "median_discovery_cpu_seconds": statistics.median(timed) if timed else None,
        "longest_discovery_cpu_seconds": max(timed, default=None),
    }


@click.command(help=__doc__)
@click.argument("types", nargs=-1)
@click.option("--mapping", "kinds", type=click.Choice([*MAPPINGS]), multiple=True, help="By default all.")
@click.option("--limit", default=120, show_default=True, help="Seconds for each type.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write a line of json for each type.")
def main(types: tuple[str, ...], kinds: tuple[str, ...], limit: int, out: Path | None) -> None:
    """Print a line for each type, and the totals; write results/rescalings.json when all types were asked for."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for kind in kinds or MAPPINGS:
        rows = []
        for model_type in (one for one in MAPPINGS[kind][0] if not types or one in types):
            try:
                with time_limit(limit):
                    rows.append(examine(kind, model_type))
            except TimeUpError:
                rows.append({"mapping": kind, "type": model_type, "status": "timeout"})
            click.echo(line(rows[-1]))
            if out:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        figures[kind] = {"totals": totals(rows), "rows": rows}
        click.echo(f"{kind}: {json.dumps(figures[kind]['totals'])}")
    if not types:
        write_results("rescalings", figures)


if __name__ == "__main__":
    main()
