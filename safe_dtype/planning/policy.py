"""What the user wants. A policy never looks at a device or a checkpoint."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from ..errors import PolicyError, UnknownDtypeError
from ..facts import COMPUTE, DEFAULT_MAX_DRIFT, FLOAT32, INT4, INT8, Dtype, dtype_named

Prefer = Literal["speed", "memory", "fidelity"]
Mode = Literal["auto", "strict"]
Variants = Literal["say", "use", "ignore"]
Save = Literal["as-saved", "as-is"]

_CHOICES = {"prefer": get_args(Prefer), "mode": get_args(Mode), "variants": get_args(Variants), "save": get_args(Save)}

# What each key takes, as an error shows it.
_EXAMPLES = {
    "prefer": "prefer=speed", "variants": "variants=use", "save": "save=as-is", "prompt": "prompt=512", "new": "new=128",
    "ladder": "ladder=bf16>fp32", "max_drift": "max_drift=0.02", "recipes": "recipes=use",
}  # fmt: skip
# What a value is taken to mean that stands alone, or beside a wrong key.
_MEANT = {value: f"{key}={value}" for key, values in _CHOICES.items() for value in values if key != "mode"} | {
    "fast": "prefer=speed", "auto": "auto", "strict": "strict", "islands": "islands",
    "int8": "int8", "int4": "int4",
}  # fmt: skip
_RECIPES = r"ignore|use|[\w-][\w.-]*/[\w-][\w.-]*"
_UNKNOWN = "auto,prefer=memory"  # where nothing is like what was written
# What other libraries call it, and what stands for a key of its own wherever it is written.
_OWN_WORDS = {word: word for word in ("int8", "int4", "islands", "strict", "auto")} | {
    "8bit": "int8", "load_in_8bit": "int8", "4bit": "int4", "load_in_4bit": "int4", "nf4": "int4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """The call that the plan is made for: one prompt, then new tokens one at a time."""

    prompt_tokens: int = 512
    new_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Policy:
    """How to choose among the dtypes that work.

    `mode="auto"` may leave the saved dtype; `"strict"` never changes it, nor a dtype that was ordered, and raises
    instead, also where `ladder` leaves that dtype out. `ladder` names the only dtypes to try, best first; empty means all,
    in the order of the measurement.
    With `islands` a step that fails may bring the module that failed into float32 before it leaves the dtype.
    `int8` asks for linear weights that are rounded to 8 bits as they are loaded, where that was measured to stay within
    `max_drift`, and `int4` for 4 bits. `max_drift` is how far outputs may lie from those in float32, where somebody measures: see `safe_dtype.exceeds`.
    `variants` is for a checkpoint on the Hub that is to be loaded in another dtype than it was saved in: whether one
    that was published in that dtype is named in the log, loaded in its place, or not looked for.
    `save` tells in which dtype a model is written that was loaded in another than its checkpoint's: in the
    checkpoint's, or as it is in memory.
    `recipes` tells where to look for what others found out about float16 for the same weights: "ignore" nowhere, "use" in
    the repository of the Hub that SAFE_DTYPE_RECIPES names, "org/name" in that one. What is found is proved on the model.
    """

    prefer: Prefer = "speed"
    mode: Mode = "auto"
    workload: Workload = Workload()
    ladder: tuple[Dtype, ...] = ()
    islands: bool = False
    max_drift: float = DEFAULT_MAX_DRIFT
    variants: Variants = "say"
    save: Save = "as-saved"
    int8: bool = False
    recipes: str = "ignore"
    int4: bool = False

    def __post_init__(self) -> None:
        if self.int8 and self.int4:
            raise PolicyError("int8,int4", "weights are rounded to one of them", example="int4")
        if self.codes and self.mode == "strict":
            problem = f"strict changes nothing, and {self.codes} rounds weights"
            raise PolicyError(f"strict,{self.codes}", problem, example=f"auto,{self.codes}")
        for key, known in _CHOICES.items():
            if getattr(self, key) not in known:
                raise PolicyError(
                    f"{key}={getattr(self, key)!r}",
                    f"it is none of {', '.join(known)}",
                    example=_meant_field(key, str(getattr(self, key))),
                )
        if not re.fullmatch(_RECIPES, self.recipes):
            raise PolicyError(
                f"recipes={self.recipes!r}", "it is neither ignore, use nor org/name", example=_EXAMPLES["recipes"]
            )
        if not 0 <= self.max_drift < math.inf:
            raise PolicyError(
                f"max_drift={self.max_drift!r}", "it is not a number from 0 on", example=_EXAMPLES["max_drift"]
            )

    @property
    def codes(self) -> Dtype | None:
        """What linear weights are asked to be rounded to; None: to nothing."""
        return INT8 if self.int8 else INT4 if self.int4 else None

    @classmethod
    def of(cls, policy: Policy | str | None) -> Policy | None:
        """Return a policy as it is, read from its short form, or None where none is given.

        Raises:
            PolicyError: If it is a text that cannot be read, or something else.
        """
        if policy is None or isinstance(policy, Policy):
            return policy
        if isinstance(policy, str):
            return cls.parse(policy)
        raise PolicyError(repr(policy), f"{type(policy).__name__} is neither a Policy nor a text")

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read the short form: comma-separated words.

        They are `auto` or `strict`, `prefer=speed`, `prompt=512`, `new=128`, `ladder=bf16>fp32`, `islands`, `int8`,
        `int4`, `max_drift=0.02`, `variants=use`, `save=as-is` and `recipes=use`.

        Raises:
            PolicyError: If a word is unknown, or its value cannot be read.
        """
        policy = cls()
        for word in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = word.partition("=")
            policy = _with_word(policy, key.strip(), value.strip(), text)
        return policy

    def __str__(self) -> str:
        words = [self.mode, f"prefer={self.prefer}"]
        if self.workload != Workload():
            words += [f"prompt={self.workload.prompt_tokens}", f"new={self.workload.new_tokens}"]
        if self.ladder:
            words.append("ladder=" + ">".join(dtype.name for dtype in self.ladder))
        if self.islands:
            words.append("islands")
        if self.codes:
            words.append(self.codes.name)
        if self.max_drift != DEFAULT_MAX_DRIFT:
            words.append(f"max_drift={self.max_drift}")
        if self.variants != "say":
            words.append(f"variants={self.variants}")
        if self.save != "as-saved":
            words.append(f"save={self.save}")
        if self.recipes != "ignore":
            words.append(f"recipes={self.recipes}")
        return ",".join(words)


def _with_word(policy: Policy, key: str, value: str, text: str) -> Policy:
    if key in get_args(Mode) and not value:
        return replace(policy, mode=cast(Mode, key))
    if key in ("islands", "int8", "int4") and not value:
        asked: dict[str, Any] = {key: True}
        return replace(policy, **asked)
    if key in ("prefer", "variants", "save"):
        if value not in _CHOICES[key]:
            raise PolicyError(
                text, f"{key}={value!r} is none of {', '.join(_CHOICES[key])}", example=_meant(key, value)
            )
        chosen: dict[str, Any] = {key: value}
        return replace(policy, **chosen)
    if key in ("prompt", "new"):
        field = {"prompt": "prompt_tokens", "new": "new_tokens"}[key]
        return replace(policy, workload=replace(policy.workload, **{field: _count(key, value, text)}))
    if key in ("ladder", "recipes", "max_drift"):
        read: dict[str, Any] = {
            "ladder": lambda: _ladder(value, text), "recipes": lambda: value, "max_drift": lambda: _drift(value, text)
        }  # fmt: skip
        return replace(policy, **{key: read[key]()})
    problem = (
        f"{key!r} is none of auto, strict, prefer=, prompt=, new=, ladder=, islands, int8, int4, max_drift=, variants=, "
        "save=, recipes="
    )
    if policy.ladder and _compute_named(key):
        rungs = [word.strip() for word in re.split("[,>=]", text) if _compute_named(word)]
        problem = f"{key!r} stands alone: between the dtypes of a ladder stands '>'"
        raise PolicyError(text, problem, example=f"ladder={'>'.join(dict.fromkeys(rungs))}")
    if _compute_named(key) or _compute_named(value):
        problem += "; one dtype is ordered with dtype=, beside the policy, and a ladder names those to try"
    raise PolicyError(text, problem, example=_meant(key, value))


def _compute_named(word: str) -> Dtype | None:
    """Return the dtype of this name that a model computes in, if there is one."""
    try:
        dtype = dtype_named(word)
    except UnknownDtypeError:
        return None
    return dtype if dtype in COMPUTE else None


def _meant_field(key: str, value: str) -> str:
    """Return what a field of another value may have been meant for: `Policy("int8")` sets the first one, `prefer`."""
    if key == "mode":
        return "mode='auto'"
    meant = _own_word(value) or _meant(key, value)
    if meant in ("int8", "int4", "islands"):
        return f"Policy({meant}=True)"
    return meant if meant.startswith(f"{key}=") else f"Policy.parse({meant!r})"


def _own_word(word: str) -> str:
    """Return how a word is written that needs no key, or the ladder that a dtype stands for; empty for others."""
    if dtype := _compute_named(word):
        return f"ladder={word.strip()}" + ">fp32" * (dtype != FLOAT32)
    return _OWN_WORDS.get(word.lower(), "")


def _meant(key: str, value: str) -> str:
    """Return what a word that cannot be read may have been meant for, as it is written."""
    if own := _own_word(key) or _own_word(value):
        return own
    key = _closest(key, (*_EXAMPLES, *_MEANT))
    if key in _MEANT:
        return _MEANT[key]
    values = {meant: word for meant, word in _MEANT.items() if word.startswith(f"{key}=")}
    return values.get(_closest(value, values)) or _EXAMPLES.get(key) or _MEANT.get(value) or _UNKNOWN


def _closest(word: str, words: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word.lower(), tuple(words), n=1)), "")


def _count(key: str, value: str, text: str) -> int:
    if not value.isdecimal() or (key == "prompt" and int(value) == 0):
        raise PolicyError(text, f"{key}={value!r} is not a number of tokens", example=_EXAMPLES[key])
    return int(value)


def _drift(value: str, text: str) -> float:
    try:
        drift = float(value)
    except ValueError:
        drift = math.nan
    if not 0 <= drift < math.inf:
        raise PolicyError(text, f"max_drift={value!r} is not a number from 0 on", example=_EXAMPLES["max_drift"])
    return drift


def _ladder(value: str, text: str) -> tuple[Dtype, ...]:
    try:
        ladder = tuple(dtype_named(name) for name in value.split(">"))
    except UnknownDtypeError as exc:
        known = ", ".join(dtype.name for dtype in COMPUTE)
        problem = f"no dtype is called {exc.name!r}; a ladder takes {known}"
        raise PolicyError(text, problem, example=_EXAMPLES["ladder"]) from exc
    if not_computable := [dtype.name for dtype in ladder if dtype not in COMPUTE]:
        raise PolicyError(text, f"no model computes in {', '.join(not_computable)}", example=_EXAMPLES["ladder"])
    if len(set(ladder)) < len(ladder):
        raise PolicyError(text, "the ladder names a dtype twice", example=_EXAMPLES["ladder"])
    return ladder
