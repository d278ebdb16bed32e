"""The state of a guard: the policy and the plan of its model, what has happened to it, and what to look at in a step."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..errors import UnknownDtypeError
from ..facts import FLOAT16, FLOAT32, Dtype, LearnedFailure, dtype_named
from ..models.islands import islands_in
from ..models.needed import changing, share
from ..models.recast import main_dtype
from ..models.undo_log import UndoLog
from ..numerics.float32_copy import Float32Copy
from ..planning import Plan, Policy
from ..planning.judge import may_overflow
from ..rescaling import departures, dtype_left, rescaled_of
from .callers_autocast import AutocastOverride
from .failure import Event, Report
from .model_lock import ModelLock
from .output_checks import watched_blocks
from .step_snapshot import Place, state_places
from .written.written_places import NOTHING, Written

if TYPE_CHECKING:
    from .entries.peers import Peers
    from .shared_steps import SharedSteps

ATTRIBUTE = "_safe_dtype_guard"  # in the __dict__ of the model and of every PreTrainedModel inside it
CALL = "__call__"  # the entry of a step that is no method's: what runs inside it is a part of it

# A step that a thread is in: its guard, the module that was called, and the name of the method.
RunningStep = tuple["Guard", nn.Module, str]


class Here(threading.local):
    """Where this thread is: in which steps, in which generations, and at which step of the innermost of those."""

    running: tuple[RunningStep, ...] = ()  # innermost last; a tuple of tuples, for one is made at every step
    step = 0
    nets: tuple[int, ...] = ()  # id() of the guards whose generate is running
    asked: tuple[list[Any], ...] = ()  # what each of these generations was given
    trains = 0  # how many windows of training it is in, that somebody runs again where they fail
    began_anew = False  # the innermost of them: a step of it could not be run again, so each is looked at at once


here = Here()


class Guard:
    """The guard of one model: the dtypes to go on in, and what has happened to the model.

    Lives in the `__dict__` of the model. A deep copy of the model gets a guard of its own; a pickled one gets none,
    so that the file can be read where safe_dtype is not installed.
    """

    def __init__(self, model: nn.Module, policy: Policy, plan: Plan | None) -> None:
        self.model = weakref.ref(model)
        self.policy = policy
        self.plan = plan
        self.is_off = False  # taken off its model
        self.events: list[Event] = []
        self.learned: list[LearnedFailure] = []  # of texts that nobody knew
        self.refusals: list[str] = []  # the texts of the errors that have ended calls, the latest last
        self.lock = ModelLock()
        self.version = 0  # how often the model was changed by a remedy
        self.departures = -1  # of all models, when this one was last asked whether it was among them
        self.written: dict[tuple[Any, ...], Written] = {}  # by the module called and the names of its arguments
        self.calls = 0  # how many steps were run outside `generate`
        self.left: set[torch.dtype] = set()  # dtypes the model was in: what comes in them is cast
        self.aligns_inputs = False
        self.batches = 0  # how many continuous batches run: their steps are not guarded one by one
        self.batch_errors: dict[str, Exception] = {}  # that ended them, by text: requests know nothing else
        self.cast_from = _cast_from(plan)  # rows from which products are computed in the plan's compute dtype
        self.attends_by_rows = False  # attention of one row is computed in another form
        self.attends_in_chunks = False  # and so is that of a prompt
        self.autocast: tuple[str, torch.dtype] | None = None  # device type and dtype: weights of several dtypes meet
        self.peers: Peers | None = None  # processes that hold copies, and agree with this one after every generation
        self.shared: SharedSteps | None = None  # processes that compute a part of every step of this model
        self.override: AutocastOverride | None = None  # of the caller's own autocast
        self.runs_eagerly = False  # the compiled form failed
        self.weights_stay = False  # somebody trains them: no remedy may change them
        self.copy: Float32Copy | None = None  # that steps run on in the place of the weights
        self.logs: list[UndoLog] | None = None  # of the remedies that helped, where they are to be taken back later
        self.mentioned: set[str] = set()  # what the user was told already: "nonfinite", "ordered"
        # Methods, by class and name, that were found to run no module, and those that return floating numbers.
        self.without_modules: set[tuple[type, str]] = set()
        self.with_numbers: set[tuple[type, str]] = set()
        # Modules that make NaN or Inf in float32 too, and digests of steps whose NaN was found to be the model's own.
        self.own_modules: tuple[nn.Module, ...] = ()
        self.own_steps: set[str] = set()
        self.own_caches: WeakSet[Cache] = WeakSet()  # in which such steps left NaN or Inf
        with changing():
            _guards.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard | None:
        model = self.model()
        copied = memo.get(id(model)) if model is not None else None
        if copied is None:  # only a part of the model is being copied
            return None
        if id(self) not in memo:
            # Its parameters are not filled in yet, so what needs them is found out on first use.
            fresh = Guard.__new__(Guard)
            fresh.__dict__.update(self.__dict__, model=weakref.ref(copied), events=list(self.events), lock=ModelLock())
            fresh.__dict__.update(
                left=set(self.left), mentioned=set(self.mentioned), written={}, learned=list(self.learned)
            )
            fresh.refusals, fresh.batch_errors = list(self.refusals), {}
            fresh.without_modules, fresh.with_numbers = set(self.without_modules), set(self.with_numbers)
            fresh.own_modules, fresh.own_steps, fresh.own_caches = (), set(), WeakSet()
            fresh.weights_stay, fresh.copy, fresh.logs = False, None, None
            fresh.peers = fresh.shared = None  # copies of copies are not known to them
            for name in ("blocks", "places", "parts"):
                fresh.__dict__.pop(name, None)
            share(self, fresh)
            with changing():
                _guards.add(fresh)
            memo[id(self)] = fresh
        return memo[id(self)]  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The blocks whose values are watched in float16: those that clamp; all where the model was made wider."""
        model = self.model()
        return watched_blocks(model, self._was_wider()) if model is not None else []

    def _was_wider(self) -> bool:
        """Whether the model was made in a dtype whose range float16 does not have."""
        model = self.model()
        if model is not None and rescaled_of(model) is not None:
            return True
        if self.plan is None or self.plan.storage != FLOAT16:
            return False
        # Weights in float16 with islands planned were made wider as well, and rounded since.
        return may_overflow(FLOAT16, self.plan.saved) or bool(self.plan.islands)

    def notice_change(self) -> None:
        """Follow the model where its rescale was taken back since, and its dtype with it."""
        self.departures = departures.count
        model = self.model()
        if model is not None and (left := dtype_left(model)) is not None:
            self.left.add(left)
            self.version += 1
            self.cast_from = self.autocast = None
            self.look_anew()

    def follow(self, part: nn.Module) -> None:
        """Guard on what is left of a model that nobody has any longer, as PEFT's `merge_and_unload` leaves its base.

        That is the outermost of its models that `part`, which was called, lies in.
        """
        around = [one for one in self.parts if one is part or any(inner is part for inner in one.modules())]
        root = max(around, key=lambda one: sum(1 for _ in one.modules()), default=part)
        self.model = weakref.ref(root)
        self.version += 1
        self.written = {}
        for name in ("blocks", "places", "parts"):
            self.__dict__.pop(name, None)

    def look_anew(self) -> None:
        """Find out again which blocks are to be watched."""
        self.__dict__.pop("blocks", None)

    @cached_property
    def places(self) -> list[Place]:
        """Where modules keep states as plain attributes."""
        model = self.model()
        return state_places(model) if model is not None else []

    @cached_property
    def parts(self) -> WeakSet[nn.Module]:
        """The modules whose calls are steps of this guard: its model and the models of transformers inside it."""
        model = self.model()
        inner = model.modules() if model is not None else ()
        return WeakSet(part for part in inner if part is model or isinstance(part, PreTrainedModel))

    def written_in_steps(self) -> Written:
        """Return what steps of all kinds were seen to write into; of their inputs those that have a name."""
        written = NOTHING
        for seen in list(self.written.values()):
            written = written.and_then(seen)
        named = frozenset(path for path in written.inputs if isinstance(path[0], str))
        return replace(written, inputs=named, is_settled=bool(self.written))

    def dtype(self) -> Dtype | None:
        """Return the dtype of most of the model's numbers now; None where it is none of ours (float64)."""
        model = self.model()
        main = main_dtype(model) if model is not None else None
        return dtype_of(main) if main is not None else None

    def computes_in(self) -> Dtype | None:
        """Return the dtype that steps compute in as far as it is that of weights: their own, or that of a copy."""
        return FLOAT32 if self.copy is not None else self.dtype()

    def step(self) -> int:
        """Return which step this thread is at: of the generation, or of all the calls outside of one."""
        return here.step if id(self) in here.nets else self.calls

    def count_step(self, output: Any, nets: tuple[int, ...]) -> None:
        """Count a step that came out right.

        In a generation of one of the guards in `nets` that is a call with logits: encoders run before it.
        """
        if id(self) not in nets:
            self.calls += 1
        elif getattr(output, "logits", None) is not None:
            here.step += 1

    def ladder(self) -> tuple[Dtype, ...]:
        """Return the dtypes to go on in, best first. float32 is the end of it, unless the policy's ladder is given."""
        if self.policy.ladder:
            return self.policy.ladder
        planned = self.plan.ladder if self.plan else ()
        return planned if FLOAT32 in planned else (*planned, FLOAT32)

    def report(self) -> Report:
        """Return what happened so far."""
        model, now = self.model(), self.dtype()
        ladder = tuple(dtype for dtype in self.ladder() if dtype != now and torch_dtype(dtype) not in self.left)
        rescaled = rescaled_of(model) if model is not None else None
        rescale = rescaled.rescale if rescaled is not None else None
        islands = tuple(islands_in(model)) if model is not None else ()
        return Report(
            type(model).__name__, now, ladder if now != FLOAT32 else (), tuple(self.events), rescale, islands,
            tuple(self.learned), tuple(self.refusals), _devices_of(model), self.plan,
        )  # fmt: skip


def _devices_of(model: nn.Module | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(weight.device) for weight in model.parameters())) if model is not None else ()


def _cast_from(plan: Plan | None) -> int | None:
    if plan is None or plan.routes is None or (plan.compute == plan.storage and not plan.routes.onednn):
        return None
    return plan.routes.cast_from


_guards: WeakSet[Guard] = WeakSet()


def guards() -> list[Guard]:
    """Return the guards that are on living models."""
    with changing():
        return [guard for guard in _guards if not guard.is_off and guard.model() is not None]


def guard_of(module: nn.Module) -> Guard | None:
    """Return the guard that `module` answers to: its own, or that of the model it is a part of."""
    guard = module.__dict__.get(ATTRIBUTE)
    return guard if isinstance(guard, Guard) else None


def guard_of_called(module: nn.Module) -> Guard | None:
    """Return the guard of a module that is called, which goes on around it where the model it was a part of is gone."""
    guard = guard_of(module)
    if guard is not None and guard.model() is None:
        guard.follow(module)
    return guard


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """Return torch's object for one of our dtypes."""
    return getattr(torch, dtype.name)  # type: ignore[no-any-return]


def dtype_of(dtype: torch.dtype) -> Dtype | None:
    """Return our dtype for one of torch's; None where it is not among ours."""
    try:
        return dtype_named(str(dtype))
    except UnknownDtypeError:
        return None
