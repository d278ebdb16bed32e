"""`patch`, `unpatch` and `patched`: whether `from_pretrained` is planned, and with which policy."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FunctionType
from typing import Any

from ..planning import Policy
from ..processes.quiet_exit import exit_quietly_if_launched
from .import_hook import BATCHES, PATCHED, STARTUP, ImportHook, remove_marked
from .patch_in_force import LOCK, OF_BLOCKS, OF_PROCESS, Patch, patch_now
from .telling import telling_of
from .wraps import LOADS, METHODS, Wrap

logger = logging.getLogger(__name__)

_SHOULD_REDUCE = "should_reduce_batch_size"
_GROUPS = "torch.distributed"
_ALSO_HOLDS = "transformers.trainer"  # has that function by its name

_unwrap: dict[str, Callable[[], None]] = {}  # by module: takes the wrapper out, once one was put in


def patch(policy: Policy | str | None = None, *, tell: str = "line") -> None:
    """Plan and guard every model that this process loads with transformers from now on.

    `PreTrainedModel.from_pretrained` is wrapped: Auto classes, concrete classes, pipelines, sentence-transformers and
    PEFT all load through it. So are the two class methods that load models and pipelines of diffusers. Imports neither
    torch nor transformers: where they are not imported yet, their import does the rest. A second call changes the policy,
    and what is said, and nothing else.

    Args:
        policy: How to choose: a `Policy`, or its short text such as "auto,prefer=memory".
        tell: What is said of each model, on stderr or in the log: "line" (what was chosen and why), "all" (the whole plan)
            or "nothing". Of several processes that load one model only the first says it.

    Raises:
        PolicyError: If `policy` or `tell` is a text that cannot be read.
    """
    parsed = _parsed(policy, tell)
    with LOCK:
        OF_PROCESS[:] = [parsed]
    exit_quietly_if_launched()
    _settle()


def unpatch() -> None:
    """Undo `patch`: transformers is what it was, object by object. Models that were loaded stay guarded.

    Blocks of `with patched()` that are still open keep their own. Does nothing where nothing was patched.
    """
    with LOCK:
        OF_PROCESS.clear()
    _settle()


@contextmanager
def patched(policy: Policy | str | None = None, *, tell: str = "line") -> Iterator[None]:
    """Do what `patch` does, in all threads, for as long as the block runs. Of several, the last one opened decides.

    Raises:
        PolicyError: If `policy` or `tell` is a text that cannot be read.
    """
    own = [_parsed(policy, tell)]
    with LOCK:
        OF_BLOCKS.append(own)
    try:
        _settle()
        yield
    finally:
        with LOCK:
            OF_BLOCKS[:] = [one for one in OF_BLOCKS if one is not own]
        _settle()


def _parsed(policy: Policy | str | None, tell: str) -> Patch:
    return Patch(Policy.of(policy) or Policy(), telling_of(tell))


def _settle() -> None:
    """Patch or unpatch transformers, by the policies that are in force now."""
    remove_marked(STARTUP)  # from here on the program decides, not how it was started
    with LOCK:
        if patch_now() is None:
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
    for method in METHODS[module.__name__]:
        _attach_to_method(module, *method)


def _attach_to_method(module: Any, class_name: str, name: str, wrap: Wrap) -> None:
    owner: Any = getattr(module, class_name, None)
    kind = classmethod if name == LOADS else FunctionType
    if not isinstance(inspect.getattr_static(owner, name, None), kind):
        what = "class method" if kind is classmethod else "method"
        logger.warning("%s has no %s with a %s %s: nothing is patched there", module.__name__, class_name, what, name)
        return
    from ..models.wrapped_methods import unwrap_methods, wrap_method  # imports torch, which is here by now

    hook = next(one for one in _hooks if one.module == module.__name__)
    with LOCK:
        if patch_now() is not None:
            wrap_method(owner, name, wrap, hook)
            _unwrap[hook.module] = functools.partial(unwrap_methods, hook)


def _attach_to_groups() -> None:
    """Have this process tell the other ranks of its device where it connects with them."""
    if _GROUPS not in sys.modules:
        return  # it will be, by the time that another module is patched
    from .process_group import tell_devices_when_connected  # imports torch, which is here by now

    with LOCK:
        if patch_now() is not None and _GROUPS not in _unwrap:
            _unwrap[_GROUPS] = tell_devices_when_connected(lambda: patch_now() is not None)


def _attach_to_batches(module: Any) -> None:
    """Have accelerate tell the failure of a dtype from a lack of memory."""
    original = getattr(module, _SHOULD_REDUCE, None)
    if not inspect.isfunction(original):
        logger.warning("%s has no function %s: nothing is patched there", BATCHES, _SHOULD_REDUCE)
        return
    with LOCK:
        if patch_now() is not None and BATCHES not in _unwrap:
            wrapper = _telling_dtypes_apart(original)
            _replace(original, wrapper)
            _unwrap[BATCHES] = functools.partial(_replace, wrapper, original)


def _telling_dtypes_apart(original: Callable[[Exception], bool]) -> Callable[[Exception], bool]:
    @functools.wraps(original)
    def should_reduce_batch_size(exception: Exception) -> bool:
        if not original(exception):
            return False
        if patch_now() is None:
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


_NAMES = {BATCHES: _SHOULD_REDUCE, **{module: methods[0][0] for module, methods in METHODS.items()}}
_hooks = [ImportHook(module, _attach) for module in PATCHED]
