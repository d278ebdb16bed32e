"""Models that overflow in float16, rescued: how close to float32, how fast, how exact, and what loading them takes.

    python benchmarks/rescue.py                          # ten families, and loading at 0.6B, about 15 minutes
    python benchmarks/rescue.py qwen3 t5 --size tiny     # a quick look
    python benchmarks/rescue.py qwen3 --load-size none   # without the loading

The families are random models that overflow as trained ones do. Per family one process, in which every way runs the
same weights on the same prompts, none of which it was calibrated on, and the ways take turns where they are timed.
Loading is timed in processes of their own, in turn, with warm file pages: the ratio of medians counts.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import click
import generation
import torch
import transformers
from peers import (
    FAMILIES,
    LARGEST,
    OURS,
    PLAIN,
    SIZES,
    TRUTH,
    WAYS,
    Loaded,
    Subject,
    closeness,
    exactness,
    generation_seconds,
    largest_by_layer,
    logits_of,
    weight_bytes,
)
from results_file import write_results

from safe_dtype import SafeAutoModel, plan_of, report
from safe_dtype.rescaling import fold_in, gauges_for, keep_rescaled
from safe_dtype.rescaling.to_float16 import computing_in_full, halve

PROMPTS, PROMPT_TOKENS, HELD_OUT = 16, 96, 4711  # the last is the seed
GIVEN, NEW_TOKENS = 64, 64  # of the generation that is timed
LOADS = 3  # of a family, after the first
LOADERS = ("plain", "rescued", "planned", "staged")


def measure_family(family: str, size: str, repeats: int) -> dict[str, Any]:
    """Return all figures of one family. Runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, _cold_cache():
        subject = Subject.saved(family, folder, size)
        seconds = _load_seconds(subject)
        loaded = {name: way(subject) for name, way in WAYS.items()}
        models = {name: one.model for name, one in loaded.items() if one.model is not None}
        vocabulary = models[TRUTH].config.vocab_size
        held_out = subject.held_out(vocabulary, count=PROMPTS, tokens=PROMPT_TOKENS, seed=HELD_OUT)
        truth = logits_of(models[TRUTH], held_out)
        close = {name: closeness(truth, logits_of(model, held_out)) for name, model in models.items()}
        prompt = subject.held_out(vocabulary, count=1, tokens=GIVEN, seed=HELD_OUT + 1)[0]["input_ids"]
        times = generation_seconds(models, prompt, NEW_TOKENS, repeats)
        rows = [_row(name, one, close.get(name), times) for name, one in loaded.items()]
        events = [str(event) for event in report(models[OURS]).events]
        plan = plan_of(models[OURS])
        exact = exactness(subject, plan.rescale, held_out)
        peaks = {
            "as_it_is": largest_by_layer(subject, held_out),
            "rescaled": largest_by_layer(subject, held_out, plan.rescale, plan.islands),
        }
    return {
        "family": family, "parameters": models[TRUTH].num_parameters(), "ways": rows, "guard_events": events,
        "exact": exact, "largest_by_layer": peaks, "load": seconds,
    }  # fmt: skip


def _row(name: str, loaded: Loaded, close: dict[str, Any] | None, times: Mapping[str, float]) -> dict[str, Any]:
    if close is None:
        return {"way": name, "refused": loaded.remark}
    return {
        "way": name, "remark": loaded.remark, **close, "weight_bytes": weight_bytes(loaded.model),
        "tokens_per_s": NEW_TOKENS / times[name], "speed_over_plain_float16": times[PLAIN] / times[name],
    }  # fmt: skip


def _load_seconds(subject: Subject) -> dict[str, float]:
    """Time the first load in float16, which measures, and later ones; the device is known already."""
    _seconds(lambda: SafeAutoModel.from_pretrained(subject.folder, dtype="float32", **subject.how))
    first = _seconds(lambda: WAYS[OURS](subject))
    turns = [tuple(_seconds(partial(WAYS[way], subject)) for way in (PLAIN, OURS)) for _ in range(LOADS)]
    plain, later = (statistics.median(times) for times in zip(*turns, strict=True))
    discovery = discovery_seconds(subject.plain(torch.bfloat16))
    return {"first_seconds": first, "later_seconds": later, "plain_float16_seconds": plain, **discovery}


def discovery_seconds(model: Any) -> dict[str, float]:
    """Time the search for the exact rescalings of an architecture, and asking for them again."""
    with _cold_cache():
        cold = _seconds(lambda: gauges_for(model))
        return {"discovery_cold_seconds": cold, "discovery_warm_seconds": _seconds(lambda: gauges_for(model))}


@contextmanager
def _cold_cache() -> Iterator[None]:
    """Have safe_dtype remember nothing from before, nor anything after."""
    before = os.environ.get("SAFE_DTYPE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAFE_DTYPE_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["SAFE_DTYPE_CACHE"]
            if before is not None:
                os.environ["SAFE_DTYPE_CACHE"] = before


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# Loading at a realistic size


def make_spiked(folder: Path, shape: str) -> None:
    """Save a random Qwen3 of this shape in bfloat16, one channel of whose hidden state overflows float16."""
    generation.make_checkpoint(folder, "bfloat16", shape=shape)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    row = model.model.layers[1].mlp.down_proj.weight.data[7]
    row *= 2.0**18  # some thousands, within float16; what it writes is 11 times larger
    model.save_pretrained(folder, max_shard_size="1GB")


def time_first(folder: str, plan_file: str) -> dict[str, float]:
    """Load once with nothing remembered but the device, and write the plan. Runs in a process of its own."""
    found = discovery_seconds(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))
    probed = _seconds(lambda: SafeAutoModel.from_pretrained(folder, dtype="float32"))
    started = time.perf_counter()
    plan = plan_of(SafeAutoModel.from_pretrained(folder, dtype="float16"))
    seconds = time.perf_counter() - started
    if plan.rescale is None:
        raise RuntimeError(f"nothing is rescaled: {plan.reason}")
    Path(plan_file).write_bytes(pickle.dumps(plan))
    return {"first_seconds": seconds, "probe_and_float32_load_seconds": probed, **found}


def time_load(folder: str, plan_file: str, loader: str) -> dict[str, float]:
    """Load once, and return the seconds and the peak of memory. Runs in a process of its own."""
    plan = pickle.loads(Path(plan_file).read_bytes())
    plain = transformers.Qwen3ForCausalLM  # imported now, for every loader
    parts: dict[str, float] = {}
    started = time.perf_counter()
    if loader == "plain":
        plain.from_pretrained(folder, dtype=torch.float16)
    elif loader == "rescued":
        SafeAutoModel.from_pretrained(folder, dtype="float16")
    elif loader == "planned":
        SafeAutoModel.from_pretrained(folder, plan=plan)
    else:
        parts = _staged(plain, folder, plan)
    return {"seconds": time.perf_counter() - started, "peak_bytes": generation.peak_bytes(), **parts}


def _staged(plain: Any, folder: str, plan: Any) -> dict[str, float]:
    """Do what loading does in its three large steps, one after another."""
    times = [time.perf_counter()]
    model = plain.from_pretrained(folder, dtype=getattr(torch, plan.saved.name))
    times.append(time.perf_counter())
    fold, effect = fold_in(model, plan.rescale, computing=computing_in_full(plan))
    keep_rescaled(model, fold, effect)
    times.append(time.perf_counter())
    halve(model, None, plan.islands)
    times.append(time.perf_counter())
    names = ("from_pretrained_seconds", "fold_and_proof_seconds", "cast_seconds")
    return {name: times[place + 1] - times[place] for place, name in enumerate(names)}


def measure_loading(shape: str, repeats: int) -> dict[str, Any]:
    """Return medians over loads in turn, and their ratios to plain transformers'."""
    with tempfile.TemporaryDirectory() as folder, _cold_cache():
        plan_file = f"{folder}/plan.pickle"
        make_spiked(Path(folder), shape)
        first = generation.in_child(__file__, "bare", "first", folder, plan_file)
        turns = [
            {one: generation.in_child(__file__, "bare", "load", folder, plan_file, one) for one in LOADERS}
            for _ in range(repeats)
        ]
    found = {
        loader: {name: statistics.median(turn[loader][name] for turn in turns) for name in turns[0][loader]}
        for loader in LOADERS
    }
    ratios = {
        f"{loader}_{name}_over_plain": found[loader][name] / found["plain"][name]
        for loader in ("rescued", "planned")
        for name in ("seconds", "peak_bytes")
    }
    return {"shape": shape, "repeats": repeats, **first, **found, **ratios}


# The command


@click.command()
@click.argument("families", nargs=-1, type=click.Choice(FAMILIES))
@click.option("--size", type=click.Choice(SIZES), default="small", show_default=True)
@click.option("--load-size", type=click.Choice([*generation.SHAPES, "none"]), default="0.6B", show_default=True)
@click.option("--repeats", type=(int, int), default=(5, 5), show_default=True, help="Generations, loads.")
@click.option("--name", default="rescue", show_default=True, help="Of the result file.")
def main(*, families: tuple[str, ...], size: str, load_size: str, repeats: tuple[int, int], name: str) -> None:
    """Measure FAMILIES (by default all), and write the tables and the plots."""
    rows = []
    for family in families or FAMILIES:
        rows.append(generation.in_child(__file__, "bare", "family", family, size, repeats[0]))
        for line in _lines(rows[-1]):
            click.echo(line, err=True)
    loading = None if load_size == "none" else measure_loading(load_size, repeats[1])
    if loading:
        click.echo(json.dumps(loading, indent=1), err=True)
    file = write_results(
        name,
        {"size": size, "positions": PROMPTS * PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "generations": repeats[0],
         "families": rows, "loading": loading},
    )  # fmt: skip
    file.with_suffix(".svg").write_text(closeness_plot(rows), encoding="utf-8")
    file.with_name(f"{name}_range.svg").write_text(range_plot(rows), encoding="utf-8")
    click.echo(file)


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"{row['family']}, {row['parameters'] / 1e6:.1f} million parameters"
    for way in row["ways"]:
        if "refused" in way:
            yield f"  {way['way']:20} not possible: {way['refused']}"
            continue
        kl = [f"{way[name]:.1e}" if way[name] is not None else "infinite" for name in ("kl_median", "kl_mean")]
        yield (
            f"  {way['way']:20} KL median {kl[0]:>8}, mean {kl[1]:>8}, top-1 {way['top1_agreement']:6.1%}, "
            f"finite {way['finite_share']:4.0%}, {way['weight_bytes'] / 1e6:6.1f} MB, "
            f"{way['speed_over_plain_float16']:.2f}x as fast  {way['remark']}"
        )
    for dtype, found in (row["exact"] or {}).items():
        yield f"  rescaled in {dtype}: {found}"
    as_it_is, now = (max(row["largest_by_layer"][name], default=0.0) for name in ("as_it_is", "rescaled"))
    yield f"  largest activation {as_it_is:.3g}, rescaled {now:.3g}"
    yield "  " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["load"].items())
    yield from (f"  guard: {event}" for event in row["guard_events"])


# The plots

_COLOURS = dict(zip(WAYS, ("", "#555555", "#b3552d", "#d9a441", "#7a6fa8", "#1f6f8b"), strict=True))
_NAMES = {  # of the families, as people write them; the last three overflow in one place inside of a layer
    "qwen3": "Qwen3", "llama": "Llama", "phi3": "Phi-3", "gemma2": "Gemma 2", "gemma3": "Gemma 3", "gpt_oss": "gpt-oss",
    "t5": "T5", "phi3_interior": "Phi-3, inside the MLP", "qwen2_scores": "Qwen2, attention scores",
    "opt_interior": "OPT, inside the MLP",
}  # fmt: skip
_LEFT, _WIDTH, _ROW = 170, 480, 30
_ROOM = 60  # beyond the axis, for what is not finite


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12">{"".join(parts)}</svg>\n'
    )


def closeness_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the median KL to float32, a line for each family, a dot for each way, on a logarithmic axis."""
    shown = [way for way in WAYS if way != TRUTH]
    top = 16 * len(shown) + 16
    bottom = top + _ROW * len(rows)
    low, high = -8, 2
    parts = [
        f'<circle cx="{_LEFT}" cy="{16 * place + 12}" r="5" fill="{_COLOURS[way]}"/>'
        f'<text x="{_LEFT + 12}" y="{16 * place + 16}">{way}</text>'
        for place, way in enumerate(shown)
    ]

    def across(power: float) -> float:
        return _LEFT + (power - low) / (high - low) * _WIDTH

    parts += [
        f'<path d="M{across(power):.1f} {top}V{bottom}" stroke="#ccc"/>'
        f'<text x="{across(power):.1f}" y="{bottom + 16}" text-anchor="middle">1e{power}</text>'
        for power in range(low, high + 1, 2)
    ]
    parts.append(f'<text x="{across(high) + _ROOM}" y="{bottom + 16}" text-anchor="middle">not finite</text>')
    for place, row in enumerate(rows):
        y = top + _ROW * (place + 0.5)
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{_NAMES[row["family"]]}</text>')
        for way in row["ways"]:
            if way["way"] not in shown or "refused" in way:
                continue
            kl = way["kl_median"]
            x = across(high) + _ROOM if kl is None else across(min(high, math.log10(max(kl, 10.0**low))))
            dot = y + 4 * (shown.index(way["way"]) - 2)  # apart, where they are equally far
            parts.append(f'<circle cx="{x:.1f}" cy="{dot}" r="4" fill="{_COLOURS[way["way"]]}"/>')
    middle = _LEFT + _WIDTH / 2
    parts.append(
        f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">median KL to float32, in nats: further left is nearer</text>'
    )
    return _svg(_LEFT + _WIDTH + 2 * _ROOM, bottom + 44, parts)


def range_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the largest |activation| of every layer, as the model is and rescaled, a panel for each family."""
    wide, tall, columns, head = 290, 170, 2, 30
    low, high = 0, 6
    parts = []
    for place, (name, way) in enumerate((("as it is", PLAIN), ("rescaled", OURS), ("65504", TRUTH))):
        parts.append(f'<text x="{50 + 80 * place}" y="16" fill="{_COLOURS[way] or "#999"}">{name}</text>')
    for number, row in enumerate(rows):
        left, top = 40 + number % columns * wide, head + 24 + number // columns * tall
        width, height = wide - 60, tall - 50

        def down(size: float, top: int = top, height: int = height) -> float:
            return top + (1 - (math.log10(max(size, 10.0**low)) - low) / (high - low)) * height

        parts.append(f'<text x="{left}" y="{top - 6}" font-weight="bold">{_NAMES[row["family"]]}</text>')
        for power in range(low, high + 1, 2):
            y = down(10.0**power)
            parts.append(
                f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>'
                f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end" font-size="10">1e{power}</text>'
            )
        parts.append(f'<path d="M{left} {down(LARGEST):.1f}h{width}" stroke="#999" stroke-dasharray="4 3"/>')
        for which, way in (("as_it_is", PLAIN), ("rescaled", OURS)):
            peaks = row["largest_by_layer"][which]
            step = width / max(1, len(peaks) - 1)
            points = " ".join(f"{left + step * layer:.1f},{down(peak):.1f}" for layer, peak in enumerate(peaks))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[way]}" stroke-width="2"/>')
        parts.append(
            f'<text x="{left + width / 2}" y="{top + height + 14}" text-anchor="middle" font-size="10">layer</text>'
        )
    return _svg(40 + columns * wide, head + math.ceil(len(rows) / columns) * tall + 10, parts)


_IN_CHILD: Mapping[str, Callable[..., Any]] = {
    "family": lambda family, size, repeats: measure_family(family, size, int(repeats)),
    "first": time_first,
    "load": time_load,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        transformers.utils.logging.disable_progress_bar()
        said = _IN_CHILD[sys.argv[2]](*sys.argv[3:])
        sys.stdout.write(json.dumps(said, allow_nan=False) + "\n")
    else:
        main()
