"""`patch`, `unpatch` and `patched`: whether `from_pretrained` is planned, and with which policy."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any

from ..planning import Policy
from ..processes.forked_lock import ForkedLock
from ..processes.quiet_exit import exit_quietly_if_launched
from .import_hook import (
    ACCELERATOR,
    ARGUMENTS,
    BATCHES,
    CONFIGS,
    MODELS,
    PARTS,
    PATCHED,
    PIPELINES,
    PRECISION,
    STARTUP,
    TRAINER,
    ImportHook,
    remove_marked,
)
from .telling import Telling, tell_training, telling_of

logger = logging.getLogger(__name__)

_NAME = "from_pretrained"
_SHOULD_REDUCE = "should_reduce_batch_size"
_GROUPS = "torch.distributed"
_ALSO_HOLDS = "transformers.trainer"  # has that function by its name


@dataclass(frozen=True, slots=True)
class _Patch:
    """How models are loaded, and what is said of them."""

    policy: Policy
    tell: Telling


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

_lock = ForkedLock()
_of_process: list[_Patch] = []  # one, after patch()
_of_blocks: list[list[_Patch]] = []  # one in each, for every open `with patched()`, the innermost last
_unwrap: dict[str, Callable[[], None]] = {}  # by module: takes the wrapper out, once one was put in


def patch(policy: Policy | str | None = None, *, tell: str = "line") -> None:
    """Plan and guard every model that this process loads with transformers from now on.

    `PreTrainedModel.from_pretrained` is wrapped: Auto classes, concrete classes, pipelines, sentence-transformers and
    PEFT all load through it. So are the two class methods that load models and pipelines of diffusers. Imports neither torch nor transformers: where they are not imported yet, their import
    does the rest. A second call changes the policy, and what is said, and nothing else.

    Args:
        policy: How to choose: a `Policy`, or its short text such as "auto,prefer=memory".
        tell: What is said of each model, on stderr or in the log: "line" (what was chosen and why), "all" (the whole plan)
            or "nothing". Of several processes that load one model only the first says it.

    Raises:
        PolicyError: If `policy` or `tell` is a text that cannot be read.
    """
    parsed = _parsed(policy, tell)
    with _lock:
        _of_process[:] = [parsed]
    exit_quietly_if_launched()
    _settle()


def unpatch() -> None:
    """Undo `patch`: transformers is what it was, object by object. Models that were loaded stay guarded.

    Blocks of `with patched()` that are still open keep their own. Does nothing where nothing was patched.
    """
    with _lock:
        _of_process.clear()
    _settle()


@contextmanager
def patched(policy: Policy | str | None = None, *, tell: str = "line") -> Iterator[None]:
    """Do what `patch` does, in all threads, for as long as the block runs. Of several, the last one opened decides.

    Raises:
        PolicyError: If `policy` or `tell` is a text that cannot be read.
    """
    own = [_parsed(policy, tell)]
    with _lock:
        _of_blocks.append(own)
    try:
        _settle()
        yield
    finally:
        with _lock:
            _of_blocks[:] = [one for one in _of_blocks if one is not own]
        _settle()


def _patch_now() -> _Patch | None:
    """Return how models are loaded; None where nothing is patched."""
    with _lock:
        holding = [*_of_process, *(one for (one,) in _of_blocks)]
    return holding[-1] if holding else None


def _parsed(policy: Policy | str | None, tell: str) -> _Patch:
    return _Patch(Policy.of(policy) or Policy(), telling_of(tell))


def _settle() -> None:
    """Patch or unpatch transformers, by the policies that are in force now."""
    remove_marked(STARTUP)  # from here on the program decides, not how it was started
    with _lock:
        if _patch_now() is None:
            _detach()
            return
        for hook in _hooks:
            if hook not in sys.meta_path:
                sys.meta_path.insert(0, hook)
    for hook in _hooks:
        module = sys.modules.get(hook.module)
        if module is not None and not hasattr(module, _NAMES[hook.module]):
            # Another thread is at the import: wait for it, without the lock that its end may need.
            module = import_module(hook.module)
        if module is not None and not _is_being_imported(module, _NAMES[hook.module]):
            _attach(module)


def _is_being_imported(module: Any, name: str) -> bool:
    """Whether this very thread is at the import of `module`: another one that it needs is patched first."""
    return not hasattr(module, name) and getattr(module.__spec__, "_initializing", False)


def _attach(module: Any) -> None:
    _attach_to_groups()
    if module.__name__ == BATCHES:
        _attach_to_batches(module)
        return
    for method in _METHODS[module.__name__]:
        _attach_to_method(module, *method)


def _attach_to_method(module: Any, class_name: str, name: str, wrap: Wrap) -> None:
    owner: Any = getattr(module, class_name, None)
    kind = classmethod if name == _NAME else FunctionType
    if not isinstance(inspect.getattr_static(owner, name, None), kind):
        what = "class method" if kind is classmethod else "method"
        logger.warning("%s has no %s with a %s %s: nothing is patched there", module.__name__, class_name, what, name)
        return
    from ..models.wrapped_methods import unwrap_methods, wrap_method  # imports torch, which is here by now

    hook = next(one for one in _hooks if one.module == module.__name__)
    with _lock:
        if _patch_now() is not None:
            wrap_method(owner, name, wrap, hook)
            _unwrap[hook.module] = functools.partial(unwrap_methods, hook)


def _attach_to_groups() -> None:
    """Have this process tell the other ranks of its device where it connects with them."""
    if _GROUPS not in sys.modules:
        return  # it will be, by the time that another module is patched
    from .process_group import tell_devices_when_connected  # imports torch, which is here by now

    with _lock:
        if _patch_now() is not None and _GROUPS not in _unwrap:
            _unwrap[_GROUPS] = tell_devices_when_connected(lambda: _patch_now() is not None)


def _attach_to_batches(module: Any) -> None:
    """Have accelerate tell the failure of a dtype from a lack of memory."""
    original = getattr(module, _SHOULD_REDUCE, None)
    if not inspect.isfunction(original):
        logger.warning("%s has no function %s: nothing is patched there", BATCHES, _SHOULD_REDUCE)
        return
    with _lock:
        if _patch_now() is not None and BATCHES not in _unwrap:
            wrapper = _telling_dtypes_apart(original)
            _replace(original, wrapper)
            _unwrap[BATCHES] = functools.partial(_replace, wrapper, original)


def _telling_dtypes_apart(original: Callable[[Exception], bool]) -> Callable[[Exception], bool]:
    @functools.wraps(original)
    def should_reduce_batch_size(exception: Exception) -> bool:
        if not original(exception):
            return False
        if _patch_now() is None:
            return True
        from .batch_size import is_of_a_dtype  # now, and not while accelerate is being imported, which it needs

        batch_size = sys._getframe(1).f_locals.get("batch_size")  # as accelerate calls it, where it asks
        return not is_of_a_dtype(exception, batch_size)

    return should_reduce_batch_size


def _replace(function: object, other: object) -> None:
    for name in (BATCHES, _ALSO_HOLDS):
        module = sys.modules.get(name)
        if getattr(module, _SHOULD_REDUCE, None) is function:
            setattr(module, _SHOULD_REDUCE, other)


def _detach() -> None:
    sys.meta_path[:] = [one for one in sys.meta_path if one not in _hooks]
    while _unwrap:
        _unwrap.popitem()[1]()


def _planned(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the class method where every way of loading a model passes exactly once."""

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        patch_now = _patch_now()
        if patch_now is None:
            return original(cls, *args, **kwargs)
        from .planned import from_pretrained_planned  # imports the whole of transformers, which is here by now

        return from_pretrained_planned(
            functools.partial(original, cls), patch_now.policy, patch_now.tell, args, kwargs
        )

    return from_pretrained


def _part_planned(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the class method that loads every model of diffusers."""

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        patch_now = _patch_now()
        if patch_now is None:
            return original(cls, *args, **kwargs)
        from .planned_diffusion import part_planned

        return part_planned(functools.partial(original, cls), patch_now.policy, patch_now.tell, args, kwargs)

    return from_pretrained


def _pipeline_planned(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the class method that loads every pipeline of diffusers."""

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        patch_now = _patch_now()
        if patch_now is None:
            return original(cls, *args, **kwargs)
        from .planned_diffusion import pipeline_planned

        return pipeline_planned(functools.partial(original, cls), patch_now.policy, patch_now.tell, args, kwargs)

    return from_pretrained


def _with_unknown_types(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `AutoConfig.from_pretrained`, which every Auto class asks before it comes to a model class."""

    def from_pretrained(cls: type, source: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, source, **kwargs)
        except ValueError:
            from ..checkpoints.known_config import config_of_architecture

            config = config_of_architecture(source, **kwargs) if _patch_now() is not None else None
            if config is None:
                raise
            return config

    return from_pretrained


def _with_settled_arguments(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what checks `TrainingArguments`."""

    def __post_init__(self: Any) -> None:  # noqa: N807  (it is one)
        if (patch_now := _patch_now()) is not None:
            from ..training.arguments import settle_arguments

            settle_arguments(self, patch_now.policy)
        original(self)

    return __post_init__


def _with_its_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap where a Trainer, which has its model by then, makes its Accelerator."""

    def create_accelerator_and_postprocess(self: Any) -> None:
        if _patch_now() is None:
            original(self)
            return
        from ..training.arguments import accelerating

        with accelerating(self):
            original(self)

    return create_accelerator_and_postprocess


def _with_settled_precision(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what every Accelerator, that of a Trainer too, is given its precision by."""

    def __init__(self: Any, mixed_precision: str | None = None, cpu: bool = False, **others: Any) -> None:  # noqa: N807, FBT001, FBT002  # accelerate's own signature
        if (patch_now := _patch_now()) is not None:
            from ..training.arguments import settled_precision

            mixed_precision = settled_precision(mixed_precision, cpu, others, patch_now.policy)
        original(self, mixed_precision, cpu, **others)

    return __init__


def _evaluated(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the loop of a Trainer's evaluations and predictions."""

    def evaluation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        patch_now = _patch_now()
        if patch_now is None:
            return original(self, *args, **kwargs)
        from ..training.evaluation import evaluating

        with evaluating(self.model, patch_now.policy):
            return original(self, *args, **kwargs)

    return evaluation_loop


def _with_kept_weights(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap where an Accelerator takes a model that is to be trained, or evaluated only."""

    def prepare_model(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if _patch_now() is not None and not kwargs.get("evaluation_mode"):
            from ..training.evaluation import keep_weights

            keep_weights(model)
        return original(self, model, *args, **kwargs)

    return prepare_model


def _with_guarded_steps(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `Trainer.train`, whose steps have to fit into memory, and are guarded from then on."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (patch_now := _patch_now()) is not None:
            from ..training.arguments import fit_before_training
            from ..training.trainer.attach import attach_where_possible

            fit_before_training(self)
            name, policy, tell = type(self).__name__, patch_now.policy, patch_now.tell
            attach_where_possible(self, policy, lambda ladder: tell_training(name, ladder, policy, tell))
        return original(self, *args, **kwargs)

    return train


# By module: classes, their methods, and what wraps them.
_METHODS: dict[str, tuple[tuple[str, str, Wrap], ...]] = {
    MODELS: (("PreTrainedModel", _NAME, _planned),),
    CONFIGS: (("AutoConfig", _NAME, _with_unknown_types),),
    PARTS: (("ModelMixin", _NAME, _part_planned),),
    PIPELINES: (("DiffusionPipeline", _NAME, _pipeline_planned),),
    PRECISION: (("AcceleratorState", "__init__", _with_settled_precision),),
    ARGUMENTS: (("TrainingArguments", "__post_init__", _with_settled_arguments),),
    ACCELERATOR: (("Accelerator", "prepare_model", _with_kept_weights),),
    TRAINER: (
        ("Trainer", "create_accelerator_and_postprocess", _with_its_model),
        ("Trainer", "evaluation_loop", _evaluated),
        ("Trainer", "train", _with_guarded_steps),
    ),
}
_NAMES = {BATCHES: _SHOULD_REDUCE, **{module: methods[0][0] for module, methods in _METHODS.items()}}
_hooks = [ImportHook(module, _attach) for module in PATCHED]
