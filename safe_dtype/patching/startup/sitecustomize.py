"""Every Python below `safe-dtype run` begins with this, whatever its version and its packages: it must not fail.

Nothing is imported here that takes time. When transformers is imported, safe_dtype patches it, where it is installed; and
so with accelerate.
"""

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType, TracebackType

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # pathlib takes longer than all the rest


def _load(name: str, folders: "list[str]") -> "ModuleType | None":
    """Load the module `name` from one of `folders`, and none other; None where it is in none of them."""
    spec = PathFinder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        return None
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    if name == __name__:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _patch(_: object) -> None:
    try:
        import safe_dtype

        safe_dtype.patch(os.environ.get("SAFE_DTYPE_PATCH"), tell=os.environ.get("SAFE_DTYPE_TELL") or "line")
    except Exception as exc:  # noqa: BLE001  # nobody chose this interpreter for safe_dtype: it may hold any, or half of one
        _say(exc)


def _wait_for_imports() -> None:
    try:
        hook = _load("import_hook", [os.path.dirname(_HERE)])  # noqa: PTH120
        assert hook is not None
        for module in hook.PATCHED:
            sys.meta_path.insert(0, hook.ImportHook(module, _patch, hook.STARTUP))
    except Exception as exc:  # noqa: BLE001  # a Python that is too old for it, or a folder that is gone
        _say(exc)


def _end_ranks_with_a_status() -> None:
    """Have a rank that ends with an exception tell its launcher, by its status, whether a restart helps."""
    before = sys.excepthook

    def end(kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None") -> None:
        before(kind, error, trace)
        if "torch.distributed" not in sys.modules:  # no rank yet
            return
        try:
            from safe_dtype.ranks.restart import leave, status_of

            status = status_of(error)
        except Exception as exc:  # noqa: BLE001  # the first exception is told already
            _say(exc)
            return
        if status is not None:
            leave(status)
        if isinstance(error, Exception):
            _leave_word(error)

    sys.excepthook = end


def _leave_word(error: BaseException) -> None:
    """Have the launcher hear of an error of the program from this rank: others may end first, for it leaves them alone."""
    try:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        handler = get_error_handler()
        try:
            raise error  # what is handled is what is written down
        except Exception as exc:  # noqa: BLE001  # whatever the program raises
            handler.record_exception(exc)
    except Exception as exc:  # noqa: BLE001  # a full disk; the error itself is told already
        _say(exc)


def _mark_rank() -> None:
    """Have what this rank starts know that it is none itself, though the launcher's variables say so."""
    try:
        rank_process = _load("rank_process", [os.path.join(os.path.dirname(os.path.dirname(_HERE)), "processes")])  # noqa: PTH118, PTH120
        assert rank_process is not None
        rank_process.mark_rank()
    except Exception as exc:  # noqa: BLE001  # a folder that is gone
        _say(exc)


def _say(exc: Exception) -> None:
    import logging

    logging.getLogger("safe_dtype").warning("transformers stays as it is in this process: %s", exc)


if "SAFE_DTYPE_PATCH" in os.environ:
    _wait_for_imports()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _mark_rank()
        _end_ranks_with_a_status()

# Ours stands in front of the one that this Python would have run.
_load(__name__, [one for one in sys.path if os.path.abspath(one or os.curdir) != _HERE])  # noqa: PTH100
