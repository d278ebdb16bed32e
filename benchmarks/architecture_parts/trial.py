"""What comes of one class: loaded by safe_dtype and by transformers alone, in every dtype, and compared."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

import safe_dtype
from safe_dtype import SafeAutoModel, plan_of, report
from safe_dtype.verifying.result_fields import Role, role_of

from .born import SEED, saved, tiny_models
from .drawn import Inputs
from .inputs import inputs_for
from .subjects import Subject

# What is loaded: the dtype of the files, and the one that is asked for; None is planned.
Orders = tuple[tuple[str, str | None], ...]
ORDERS: Orders = (
    ("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "float32"), ("bfloat16", None),
)  # fmt: skip
NEW_TOKENS = 4
ROUNDED = 8.0  # times the error of the same model in plain transformers: another order of sums
LEAST_ERROR = 1e-3
FAR = 0.25  # relative to float32: no rounding any more


@dataclass(frozen=True)
class Result:
    """What one model gave: its tensors by name, or what it raised."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    error: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether all its numbers are; -Inf is a mask."""
        return not self.error and not any(_bad(one).any() for one in self.tensors.values())


@dataclass(frozen=True)
class Question:
    """What a model is asked: its inputs, and whether it is to generate as well."""

    inputs: Inputs
    generates: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    subject: Subject
    inputs: str = ""  # names
    outcomes: Mapping[str, str] = field(default_factory=dict)  # by what was asked for
    problem: str = ""  # why there is no model of it
    seconds: float = 0.0


def examine(subject: Subject, orders: Orders = ORDERS) -> Row:
    """Make a tiny model of the class, and return what comes of it in each dtype."""
    started = time.perf_counter()
    problem = ""
    try:
        for model in tiny_models(subject.model_type, getattr(tf, subject.model_class)):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    row = _compared(subject, model, Path(folder), orders)
                except _NoSubjectError as exc:
                    problem = problem or str(exc)
                    continue
            return replace(row, seconds=time.perf_counter() - started)
    except Exception as exc:  # noqa: BLE001  # foreign code over its own default config: a row of the table
        problem = problem or _named(exc)
    return Row(subject, problem=problem, seconds=time.perf_counter() - started)


class _NoSubjectError(Exception):
    """A model that plain transformers does not run, or not twice alike."""


def _compared(subject: Subject, model: Any, folder: Path, orders: Orders) -> Row:
    model_class = type(model)
    try:
        folders = saved(model, folder)
        again = model_class.from_pretrained(folders["float32"], dtype=torch.float32).eval()
        inputs = inputs_for(again, lambda one, inputs: result_of(one, Question(inputs), raises=True))
        question = Question(inputs, _generates(again, inputs))
        once, twice = (result_of(again, question) for _ in range(2))
    except Exception as exc:
        raise _NoSubjectError(_named(exc)) from exc
    if not equal(once, twice):
        raise _NoSubjectError("it does not repeat itself")
    outcomes = {}
    references: dict[str, Result] = {}
    for files, dtype in orders:
        if files not in references:
            full = model_class.from_pretrained(folders[files], dtype=torch.float32).eval()
            references[files] = result_of(full, question)
        asked = f"{dtype or 'planned'} of {files} files" if dtype != files else files
        outcomes[asked] = _outcome(subject, model_class, folders[files], dtype, question, references[files])
    names = [name for name in inputs if not name.endswith("mask")]
    return Row(subject, ", ".join([*names, "generate"] if question.generates else names), outcomes)


def _outcome(
    subject: Subject, model_class: Any, folder: Path, dtype: str | None, question: Question, full: Result
) -> str:
    auto: Any = getattr(safe_dtype, f"Safe{subject.auto}") if _loads(subject.auto, folder) else SafeAutoModel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = auto.from_pretrained(folder, **({"dtype": dtype} if dtype else {}))
        except Exception as exc:  # noqa: BLE001  # that is what the table is for
            return f"LOAD FAILS: {_named(exc)}"
        if type(model) is not model_class:
            return f"OTHER CLASS: {type(model).__name__}"
        plan = plan_of(model)
        ours = result_of(model, question)
    storage = getattr(torch, plan.storage.name)
    plain_model = model_class.from_pretrained(folder, dtype=storage).eval()
    plain = result_of(plain_model, question)
    if plain.error and not ours.error:  # as a user casts the floats by hand
        plain = result_of(plain_model, replace(question, inputs=in_dtype(question.inputs, plain_model.dtype)))
    is_plain = plan.storage == plan.compute and not (plan.rescale or plan.islands or plan.routes)
    events = [f"{event.kind} {event.before}->{event.after}: {event.remedy}" for event in report(model).events]
    return verdict(plain, ours, full, is_plain=is_plain, events=events)


def _loads(auto: str, folder: Path) -> bool:
    """Whether this Auto class is for models that we have a class for, and takes the config: not that of a part."""
    if not auto.startswith("AutoModelFor"):
        return False
    return type(tf.AutoConfig.from_pretrained(folder)) in getattr(tf, auto)._model_mapping


def verdict(plain: Result, ours: Result, full: Result, *, is_plain: bool, events: list[str]) -> str:
    """Return in words how what safe_dtype gave compares with plain transformers, and with float32.

    Words in capitals say that something is wrong.
    """
    added = f" ({'; '.join(dict.fromkeys(events))})" if events else ""
    if ours.error and full.error:
        return "float32 fails as well"
    if ours.error:
        return f"{'NOT RESCUED' if plain.error else 'FAILS'}: {ours.error}{added}"
    spoiled = [name for name, one in _comparable(ours, full) if (_bad(one) & ~_bad(full.tensors[name])).any()]
    if equal(plain, ours) and all(_may_be_infinite(name, ours.tensors[name]) for name in spoiled):
        added = f", +Inf in {', '.join(spoiled)} as in plain" * bool(spoiled) + added
    elif spoiled:
        return f"NAN where float32 has numbers{added}"
    if plain.error or any((_bad(one) & ~_bad(ours.tensors[name])).any() for name, one in _comparable(plain, ours)):
        error = distance(ours, full)
        return f"{'rescued' if error < FAR else f'FAR from float32, by {error:.1e}'}{added or ' by its plan'}"
    of_numbers = _of_numbers(plain, ours, full, may_differ=not is_plain or bool(events))
    return (f"EVENT WITHOUT NEED, {of_numbers}" if events and of_numbers.startswith("same") else of_numbers) + added


def _may_be_infinite(name: str, tensor: Tensor) -> bool:
    """Whether +Inf means nothing there: what one part of a model hands to the next, as the places where boxes begin."""
    return role_of(name.split(".")[1]) is Role.PART and not tensor.isnan().any()


def _of_numbers(plain: Result, ours: Result, full: Result, *, may_differ: bool) -> str:
    if equal(plain, ours):
        error = distance(ours, full)
        return "same" if error < FAR else f"same, {error:.1e} from float32"
    error, allowed = distance(ours, full), max(LEAST_ERROR, ROUNDED * distance(plain, full))
    if may_differ and error <= allowed:
        return "as close"
    return f"DIFFERS by {distance(ours, plain):.1e}, from float32 by {error:.1e}"


def is_fault(row: Row) -> bool:
    """Whether something is wrong with what safe_dtype made of it."""
    return row.problem.startswith("CRASHED") or any(outcome[:2].isupper() for outcome in row.outcomes.values())


def result_of(model: Any, question: Question, *, raises: bool = False) -> Result:
    """Call `model`, and have it generate where it does; the same random numbers every time."""
    try:
        with torch.no_grad():
            torch.manual_seed(SEED)
            tensors = dict(tensors_in(model(**_copied(question.inputs)), "output"))
            if question.generates:
                tensors |= dict(tensors_in(_generated(model, question.inputs), "generated"))
    except Exception as exc:
        if raises:
            raise
        return Result(error=_named(exc))
    return Result(tensors)


def _generates(model: Any, inputs: Inputs) -> bool:
    if not model.can_generate():
        return False
    try:
        _generated(model, inputs)
    except Exception:  # noqa: BLE001  # foreign code that may want other arguments
        return False
    return True


def _generated(model: Any, inputs: Inputs) -> Any:
    torch.manual_seed(SEED)
    asked = {name: value for name, value in _copied(inputs).items() if not name.startswith(("decoder_", "labels"))}
    with torch.no_grad():
        return model.generate(**asked, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of an output by its name; caches and losses apart, which nobody guards."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if role_of(key) is not Role.ASIDE:
                yield from tensors_in(one, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for number, one in enumerate(value):
            yield from tensors_in(one, f"{name}.{number}")


def in_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Return the inputs with their floats in `dtype`."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def equal(one: Result, other: Result) -> bool:
    """Whether two results are the same, bit for bit and in the same dtypes."""
    return one.tensors.keys() == other.tensors.keys() and all(
        mine.dtype == other.tensors[name].dtype and torch.equal(_bits(mine), _bits(other.tensors[name]))
        for name, mine in one.tensors.items()
    )


def distance(one: Result, other: Result) -> float:
    """Return the root mean square of the difference, relative to that of `other`; the largest of all outputs."""
    distances = [0.0]
    for name, mine in _comparable(one, other):
        theirs = other.tensors[name]
        if not mine.is_floating_point() or not mine.numel():
            continue
        both = mine.isfinite() & theirs.isfinite()
        difference, size = (mine.double() - theirs.double())[both], theirs.double()[both]
        if both.any():
            distances.append(float(difference.square().mean().sqrt() / size.square().mean().sqrt().clamp_min(1e-12)))
    return max(distances)


def _comparable(one: Result, other: Result) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in one.tensors.items():
        if name in other.tensors and other.tensors[name].shape == tensor.shape:
            yield name, tensor


def _bad(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, dtype=torch.bool)
    return tensor.isnan() | tensor.isposinf()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(nan=0.125) if tensor.is_floating_point() else tensor


def _copied(inputs: Inputs) -> Inputs:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _named(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160]
