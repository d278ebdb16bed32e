"""An optimization as a page for people, in Markdown as GitHub renders it, and as a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...rendering.markdown import code, inline, one_line, table
from ..forms import find_form
from ..nouns.record import BreakSite, Distance, DtypeVerdict, FormAttempt, Optimization, Outcome, Status
from .answered_inputs import ranges, sizes_answered, traced_tensors
from .choose import gain_of

PICTURE = "report.svg"

_NONE = "-"
_MOST_SITES = 20
_SHORT_HASH = 12  # hexadecimal digits: enough to tell files apart, not to prove what they are
HEADLINES = {
    Status.REACHED: "Reached",
    Status.FELL_BACK: "Fell back",
    Status.NO_DTYPE: "Nothing passed: use the model as it was",
}
# Of the environment, in this order; what is not there is left out.
_ENVIRONMENT = ("python", "platform", "packages", "compiler", "cpu", "onednn", "cuda", "hip", "gpus", "threads", "settings", "load_average")  # fmt: skip


def report_text(record: Optimization) -> str:
    """Return the page: what was reached and why, everything that was tried, and how to use, undo and repeat it."""
    parts = (
        _headline(record), _dtypes(record), _attempts(record), _unused(record), _graphs(record), _reference(record),
        _inputs(record), _use(record), _environment(record),
    )  # fmt: skip
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part))) + "\n"


def summary_text(record: Optimization) -> str:
    """Return 5 to 15 lines for a terminal: what was reached, the dtypes, and the forms that count."""
    lines = [
        f"{record.source} ({record.model_class or 'a plain module'}, {record.parameters:,} parameters) on {record.device}",
        f"{HEADLINES[record.status]} (status {int(record.status)}): {record.why or 'no reason was recorded'}",
    ]
    lines += [
        f"  eager in {verdict.dtype}: {verdict.problem or 'passes'}{_against(verdict.distance)}"
        for verdict in record.dtypes[:3]
    ]
    verified = [number for number, one in enumerate(record.attempts) if one.outcome is Outcome.VERIFIED]
    gains = _gains(record)
    verified.sort(key=lambda number: (number != record.chosen, -(gains[number] or 0.0)))
    lines += [f"  {'*' if number == record.chosen else ' '} {_line(number, record, gains)}" for number in verified[:5]]
    if others := len(record.attempts) - len(verified[:5]):
        lines.append(f"  {others} more attempts: see report.md, with the reason of each")
    if sizes := sizes_answered(record):
        lines.append(f"  {sizes}")
    if sites := _all_sites(record):
        lines.append(f"  first break: {sites[0].file}:{sites[0].line} {one_line(sites[0].code)}")
    lines.append(
        "Load it with safe_dtype.load_optimized(DIR)." if record.winner else "There is nothing to load: see report.md."
    )
    lines.append("The original is as it was, and kept in DIR/original.")
    return "\n".join(lines)


def _headline(record: Optimization) -> Iterator[str]:
    yield f"# {inline(record.source)}, optimized"
    yield ""
    yield f"**{HEADLINES[record.status]}** (exit status {int(record.status)}): {inline(record.why or 'no reason recorded')}"
    yield ""
    what = f"`{record.model_class}`" if record.model_class else "a plain module"
    yield f"- Model: {what}, {record.parameters:,} parameters, saved in {record.saved_dtype}"
    yield f"- Asked for: form {record.asked_form}, dtype {record.asked_dtype}, on {record.device}"
    if record.winner is not None and record.chosen is not None:
        yield f"- Chosen: attempt {record.chosen}, {inline(_named(record.winner))}{_coverage(record.winner)}{_about(record.winner)}"
    yield ""
    yield f"![Drift and time of every form]({PICTURE})"


def _dtypes(record: Optimization) -> Iterator[str]:
    if not record.dtypes:
        return
    yield "## Dtypes"
    yield ""
    yield "Eager in each dtype, compared with eager in float32: the error of the dtype alone. `relative` is the largest difference over the largest output; `equal ids` is the share of integers and masks that are the same."  # fmt: skip
    yield ""
    yield _limit(record)
    yield ""
    titles = ("dtype", "relative", "largest difference", "cosine", "top-1", "equal ids", "mIoU", "KL (nats)", "NaN or infinite", "run ms", "x float32", "verdict")  # fmt: skip
    yield from table(titles, (_dtype_row(one) for one in record.dtypes))


def _limit(record: Optimization) -> str:
    if record.max_drift is None:
        return "A dtype passes where rounding explains the difference: `optimize` has limits for each dtype."
    return (
        f"You allow a drift of {record.max_drift:g} from float32 (`max_drift`, in the unit of `safe-dtype verify`). It is "
        "judged on every batch in place of the limits of each dtype, and for a form in addition to the comparison with "
        "eager in the same dtype."
    )


def _dtype_row(verdict: DtypeVerdict) -> tuple[str, ...]:
    far = verdict.distance
    figures: Sequence[str] = (
        (_small(far.relative), _small(far.max_abs), f"{far.cosine:.6f}", _share(far.top1_agreement), _share(far.equal_entries),
         _share(far.miou), _small(far.kl), f"{far.nonfinite:,}")
        if far is not None
        else (_NONE,) * 8
    )  # fmt: skip
    return (
        str(verdict.dtype),
        *figures,
        _milliseconds(verdict.seconds),
        _times(verdict.speedup),
        inline(verdict.problem) or "passes",
    )


def _attempts(record: Optimization) -> Iterator[str]:
    if not record.attempts:
        return
    yield "## Attempts"
    yield ""
    yield "Each form, compared with eager in the same dtype: the error of the form alone, the worst of the stages that it reached. A form and eager are timed in turns in one process: `x eager` is the speedup. `x eager float32` is that times the speedup of the dtype, from the table of the dtypes."  # fmt: skip
    yield ""
    titles = ("no.", "form", "dtype", "remedies", "outcome", "stages", "form error", "top-1", "equal ids", "mIoU", "KL (nats)", "build s", "run ms", "x eager", "x eager float32", "size")  # fmt: skip
    gains = _gains(record)
    rows = (_attempt_row(number, one, gains[number], record) for number, one in enumerate(record.attempts))
    yield from table(titles, rows)
    yield ""
    yield "`load_optimized` loads the one in bold. Its `attempt` takes the number of another one whose files were kept."


def _attempt_row(number: int, attempt: FormAttempt, gain: float | None, record: Optimization) -> tuple[str, ...]:
    far = _worst(attempt)
    mark = "**" if number == record.chosen else ""
    return (
        f"{mark}{number}{mark}",
        f"{mark}{attempt.form}{mark}{_coverage(attempt)}",
        str(attempt.dtype),
        _listed(attempt.remedies) or _NONE,
        str(attempt.outcome),
        ", ".join(stage.name for stage in attempt.stages) or _NONE,
        *(
            (
                _small(far.relative),
                _share(far.top1_agreement),
                _share(far.equal_entries),
                _share(far.miou),
                _small(far.kl),
            )
            if far
            else (_NONE,) * 5
        ),
        f"{attempt.seconds.build:.1f}" if attempt.seconds.build is not None else _NONE,
        _milliseconds(attempt.seconds.run)
        + (f" ±{attempt.seconds.spread / 2:.0%}" if attempt.seconds.spread is not None else ""),
        _times(attempt.speedup),
        _times(gain),
        _size(attempt.bytes),
    )


def _unused(record: Optimization) -> Iterator[str]:
    """Yield every attempt that was not verified, with its reason and its log."""
    failed = [
        (number, attempt) for number, attempt in enumerate(record.attempts) if attempt.outcome is not Outcome.VERIFIED
    ]
    if not failed:
        return
    yield "## Why the others are not used"
    yield ""
    for number, attempt in failed:
        log = f" Log: [{inline(attempt.log)}](<{attempt.log}>)." if attempt.log else ""
        yield f"- **{number}, {inline(_named(attempt))}**: {attempt.outcome}. {inline(attempt.reason) or 'No reason was recorded'}.{log}"


def _graphs(record: Optimization) -> Iterator[str]:
    graphs, sites = record.graphs, _all_sites(record)
    if not graphs and not sites:
        return
    yield "## Graphs"
    yield ""
    whole = graphs.get("whole")
    if whole is not None:
        yield "The model captures as one graph." if whole else f"The model does not capture as one graph: {inline(graphs.get('reason') or 'no reason recorded')}."  # fmt: skip
    if graphs.get("problem"):
        yield f"The diagnosis did not finish: {inline(graphs['problem'])}."
    if graphs.get("remedies"):
        yield f"With {_listed(graphs['remedies'])} it captures whole, and computes the same."
    yield from (
        f"- {code(remedy)} did not help: {inline(why)}" for remedy, why in dict(graphs.get("tried") or {}).items()
    )
    if sites:
        yield ""
        rows = (
            (
                code(f"{site.file}:{site.line}"),
                code(site.code),
                inline(site.kind),
                str(site.count),
                inline(site.reason),
            )
            for site in sites[:_MOST_SITES]
        )
        yield from table(("where it breaks", "code", "kind", "times", "reason"), rows)
        if len(sites) > _MOST_SITES:
            yield ""
            yield f"... and {len(sites) - _MOST_SITES} more lines, in optimization.json."
    if counts := graphs.get("counts"):
        yield ""
        titles = ("counted by torch._dynamo.explain", "graphs", "reasons", "graph breaks", "problem")
        yield from table(titles, _rows(counts, ("mode", "graphs", "reasons", "counter", "problem")))
        yield ""
        yield "The counts decide nothing: whether the model captures whole was found out by capturing it."


def _reference(record: Optimization) -> Iterator[str]:
    facts = record.reference
    if not facts:
        return
    yield "## Reference"
    yield ""
    steady = "repeats itself" if facts.get("steady") else f"does not repeat itself (largest difference {_small(facts.get('repeat_max_abs'))})"  # fmt: skip
    finite = "is finite" if facts.get("finite") else "has NaN or infinity"
    empty = "is degenerate" if facts.get("degenerate") else "is not degenerate"
    yield f"Eager in float32 {steady}, {finite} and {empty}; its largest output is {_small(facts.get('largest'))}."
    yield from (f"- Problem: {inline(one)}" for one in facts.get("problems") or ())
    yield from (f"- Weak: {inline(one)}" for one in facts.get("weak") or ())


def _inputs(record: Optimization) -> Iterator[str]:
    if not record.batches and not record.files:
        return
    yield "## Inputs"
    if record.batches:
        yield ""
        rows = ((one.role, inline(one.about), _shapes(one.tensors), code(one.file)) for one in record.batches)
        yield from table(("role", "about", "tensors", "file"), rows)
    if varying := list(ranges(record)):
        yield ""
        yield f"May vary: {', '.join(varying)}."
    for name, why in dict(record.graphs.get("unusable") or {}).items():
        yield f"- {code(name)} was left out, because eager fails on it: {inline(why)}"
    if record.files:
        yield ""
        yield f"Files of the model, by the first {_SHORT_HASH} digits of their SHA-256 (all of them are in optimization.json):"
        yield ""
        yield from table(("file", "SHA-256"), ((code(name), code(one[:_SHORT_HASH])) for name, one in record.files.items()))  # fmt: skip


def _use(record: Optimization) -> Iterator[str]:
    yield "## Use it"
    yield ""
    if record.winner is not None:
        call = ", ".join(f"{name}={name}" for name in traced_tensors(record)) or "**inputs"
        yield from (
            "```python", "from safe_dtype import load_optimized", "", 'model = load_optimized("DIR")  # this folder',
            f"outputs = model({call})  # tensors by name", "```", "",
            "Where it cannot be used (another version of torch, inputs beyond the ranges, NaN), eager runs on the "
            "original weights, with a warning. A folder that was made elsewhere needs `trust=True` where it holds code.",
        )  # fmt: skip
    else:
        yield "There is no form to load. The model is as it was."
    yield from (
        "", "The original was not touched. To bring it back where somebody changed it:", "", "```",
        "safe-dtype optimize --restore --out DIR", "```", "", "To repeat all this:", "", "```", command_of(record), "```",
    )  # fmt: skip


def _environment(record: Optimization) -> Iterator[str]:
    if not record.environment and not record.verdicts:
        return
    yield "## Environment"
    yield ""
    facts = ((name, inline(_flat(record.environment[name]))) for name in _ENVIRONMENT if record.environment.get(name))
    yield from table(("what", "value"), facts)
    if record.verdicts:
        yield ""
        titles = ("dtype on the device", "operation", "verdict", "reason")
        yield from table(titles, _rows(record.verdicts, ("dtype", "op", "kind", "reason")))


def command_of(record: Optimization) -> str:
    """Return the command that repeats an optimization."""
    words = [f"safe-dtype optimize {record.source} --out DIR"]
    words += [f"--form {record.asked_form}"] * (record.asked_form != "auto")
    words += [f"--dtype {record.asked_dtype}"] * (record.asked_dtype != "auto")
    words += [f"--max-drift {record.max_drift}"] * (record.max_drift is not None)
    if batch := record.dynamic.get("batch"):
        words.append(f"--batch {batch[0]}..{batch[1]}")
    return " ".join((*words, f"--device {record.device}"))


def _all_sites(record: Optimization) -> list[BreakSite]:
    """Return every line that a graph breaks at, each once: of the diagnosis first, then of the attempts."""
    known: dict[tuple[str, int], BreakSite] = {}
    diagnosed = (one if isinstance(one, BreakSite) else BreakSite(**one) for one in record.graphs.get("sites") or ())
    for site in (*diagnosed, *(site for one in record.attempts for site in one.sites)):
        known.setdefault((site.file, site.line), site)
    return list(known.values())


def _gains(record: Optimization) -> list[float | None]:
    """Return for each attempt how many times faster than eager in float32 it is; None where it was not timed."""
    verdicts = {one.dtype: one for one in record.dtypes}
    return [gain_of(one, verdicts) if one.seconds.run else None for one in record.attempts]


def _worst(attempt: FormAttempt) -> Distance | None:
    worst: Distance | None = None
    for stage in attempt.stages:
        worst = stage.distance if worst is None else worst.worse(stage.distance)
    return worst


def _line(number: int, record: Optimization, gains: Sequence[float | None]) -> str:
    attempt = record.attempts[number]
    return f"{_named(attempt)}: {_times(gains[number])} the speed of eager float32{_against(_worst(attempt))}"


def _against(far: Distance | None) -> str:
    if far is None:
        return ""
    figures = (("top-1", far.top1_agreement), ("equal ids", far.equal_entries), ("mIoU", far.miou))
    return f", relative error {_small(far.relative)}" + "".join(
        f", {name} {_share(value)}" for name, value in figures if value is not None
    )


def _named(attempt: FormAttempt) -> str:
    return f"{attempt.form} in {attempt.dtype}" + (f" with {', '.join(attempt.remedies)}" if attempt.remedies else "")


def _about(attempt: FormAttempt) -> str:
    form = find_form(attempt.form)
    return f": {form.about}" if form else ""


def _coverage(attempt: FormAttempt) -> str:
    if not attempt.regions:
        return ""
    share = f", {attempt.coverage:.0%} of the parameters" if attempt.coverage is not None else ""
    return f" ({len(attempt.regions)} regions{share})"


def _shapes(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{code(name)} {' x '.join(map(str, facts.get('shape') or ()))} {facts.get('dtype', '')}".rstrip()
        for name, facts in tensors.items()
    )


def _rows(facts: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Iterator[Sequence[str]]:
    for fact in facts:
        values = (fact.get(name) for name in names)
        yield tuple(_NONE if value in (None, "") else inline(str(value)) for value in values)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_flat(one) for one in value)
    return str(value)


def _listed(values: Iterable[str]) -> str:
    return ", ".join(code(one) for one in values)


def _small(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2g}"


def _share(value: float | None) -> str:
    """Return a share in percent; less than all of it is never rounded to 100 %."""
    if value is None:
        return _NONE
    return f"{value:.2%}" if value == 1 or value < 0.99995 else "<100%"


def _milliseconds(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{seconds * 1000:.3g}"


def _times(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}x"


def _size(size: int) -> str:
    return _NONE if not size else f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
