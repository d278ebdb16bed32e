"""Every error: in the tree, in the docstring that draws it, whole after pickling, and with a next step."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from typing import Any

import pytest

from safe_dtype import errors
from safe_dtype.facts import dtypes
from safe_dtype.guarding import Attempt
from safe_dtype.planning import Candidate, Cost, Decision, Ground

DECISION = Decision(
    Candidate(dtypes.FLOAT16, dtypes.FLOAT16), Ground.RANGE, "ends at 65504", Cost(None, None, 1, 1, 1)
)
EXAMPLES = [
    errors.UnknownDtypeError("bf17", ("float32",)),
    errors.PolicyError("fast", "unknown word"),
    errors.NoSuchDeviceError("cuda:7", ("cpu",)),
    errors.UnknownDeviceError("Tesla T5", ("NVIDIA Tesla T4",)),
    errors.ProbeError("cpu", "no memory", "free some"),
    errors.CheckpointNotFoundError("x", "no such folder", "check the name"),
    errors.GatedCheckpointError("x", "gated", "log in"),
    errors.CorruptCheckpointError("x", "truncated", "download it again"),
    errors.MissingShardError("x", "two files missing"),
    errors.UnsafeCheckpointError("x", "pickled code"),
    errors.NoSafeDtypeError("x", "cpu", (DECISION,)),
    errors.NothingFitsError("x", "cpu", (DECISION,)),
    errors.StrictModeError("float16", "wrong", ("float32",)),
    errors.ConflictError("dtype", "float16", "float32"),
    errors.StalePlanError("device", "AMD EPYC", "NVIDIA H100"),
    errors.NoPlanError("BertModel"),
    errors.NotServableError("org/model", "float16", "it would overflow", "leave out --dtype"),
    errors.QuantizerPackageError("x", "gptq", ("optimum", "gptqmodel")),
    errors.NotGuardedError("BertModel"),
    errors.RescaleError("model.norm.eps is no number"),
    errors.NoDtypeLeft("nonfinite in lm_head at step 3", "float32", (Attempt("float32", "needs 8 GB more"),)),
    errors.CannotResumeError("nonfinite", "tokens have been streamed", "float32"),
    errors.DeviceLostError("cuda:0", "float16", "device-side assert triggered"),
    errors.UnsteadyReferenceError(0.25),
    errors.DegenerateReferenceError("all its logits are equal"),
    errors.IncomparableOutputsError("shapes (1, 2, 96) and (1, 2, 97)", "compare models of one vocabulary"),
    errors.NothingToCompareError("there are no batches", "pass one at least"),
    errors.EnvironmentNotFitError("a C++ compiler", "install it, or ask for another form"),
    errors.BackupError("the output folder lies in the source", "name another one"),
    errors.NotRestorableError("config.json was changed in the backup", "download the model again"),
    errors.NotExportableError("its architecture has no name there", "write another format"),
    errors.NotOptimizableError("its inputs are not known", "pass some"),
    errors.NotOptimizedError("out", "there is no optimization.json in it"),
    errors.UntrustedFolderError("out", "native code"),
    errors.NeedsRestart("DeepSpeed", "float32"),
    errors.HalfParametersError("bfloat16"),
    errors.TrainingLoopError("an attempt was not entered"),
    errors.NotSwitchableError("accelerate 9.9 has no Accelerator.scaler", "install accelerate 1.15"),
    errors.TrainingDoesNotFitError("float32", 9_000_000_000, 8_000_000_000, 2),
    errors.LaunchError("2 machines, and no address", "pass --main_process_ip"),
    errors.PeerLostError(0, 600.0, "it has not come", (1, 3)),
    errors.RanksDisagreeError("checkpoint", (((0, 2), "abc"), ((1,), "def")), "download it again on rank 1"),
    errors.RemoteFailure(1, "ValueError: 3"),
    errors.NotPublishableError("not-started", "org/m", "its license is not known", "nothing", "name it"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_pickle(error: errors.SafeDtypeError) -> None:
    """Every error survives pickling with its facts, to another rank or process."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_strict_mode_at_run_time() -> None:
    """The error of a model that failed when it ran speaks of that, has the same facts, and survives pickling."""
    error = errors.StrictModeError("float16", "wrong", ("float32",), next_step="load it in float32")
    copy = pickle.loads(pickle.dumps(error))
    assert error.args == ("float16", "wrong", ("float32",))
    assert vars(copy) == vars(error)
    text = "In strict mode this model stays in float16, and it failed: wrong. Would work: float32. Next: load it in float32."
    assert str(copy) == text


def test_a_loss_that_blames_no_dtype() -> None:
    """A device that is lost for a reason that is not known is not said to be remembered for a dtype."""
    error = errors.DeviceLostError("cuda:0", "", "device-side assert triggered")
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    assert "nothing is remembered" in str(error)
    assert "CUDA_LAUNCH_BLOCKING=1" in str(error)


def test_error_examples_are_complete() -> None:
    """Every leaf of the error tree is in the examples, and in the docstring that draws the tree."""
    module = importlib.import_module("safe_dtype.errors")
    leaves = {
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, errors.SafeDtypeError) and not one.__subclasses__()
    }
    assert leaves == {type(error) for error in EXAMPLES if not type(error).__subclasses__()}
    for leaf in leaves:
        assert leaf.__name__ in str(module.__doc__)


CLASSES = sorted(
    (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.SafeDtypeError)),
    key=lambda cls: cls.__name__,
)
RAISED = [
    cls
    for cls in CLASSES
    if any("__init__" in vars(base) for base in cls.__mro__ if base.__module__.startswith("safe_dtype"))
]


def made_of_little(cls: type[errors.SafeDtypeError]) -> errors.SafeDtypeError:
    """Return an error of this class, made with what its signature demands and nothing more."""
    examples: dict[str, Any] = {
        "str": "x", "int": 1, "float": 0.25, "tuple[str, ...]": (), "tuple[tuple[tuple[int, ...], str], ...]": (), "tuple[JudgedCandidate, ...]": (),
        "tuple[TriedRemedy, ...]": (),
    }  # fmt: skip
    parameters = inspect.signature(cls).parameters.values()
    return cls(*(examples[one.annotation] for one in parameters if one.default is one.empty))


@pytest.mark.parametrize("cls", RAISED, ids=lambda cls: cls.__name__)
def test_next_step(cls: type[errors.SafeDtypeError]) -> None:
    """The text of every error says what to do next, however little is known to the code that raises it."""
    before, _, after = str(made_of_little(cls)).partition("Next: ")
    assert before
    assert len(after) > 1


def test_no_class_is_hidden_in_its_module() -> None:
    """What a module of errors defines can be imported from `safe_dtype.errors`, and is listed there."""
    modules = [
        importlib.import_module(f"{errors.__name__}.{one.name}") for one in pkgutil.iter_modules(errors.__path__)
    ]
    defined = {
        one.__name__
        for module in modules
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, errors.SafeDtypeError) and one.__module__ == module.__name__
    }
    assert defined == {cls.__name__ for cls in CLASSES}
    assert defined <= set(errors.__all__)


def test_every_class_is_raised_or_a_base() -> None:
    """A class without an `__init__` of its own or of a base is only there to be caught."""
    assert all(cls.__subclasses__() for cls in CLASSES if cls not in RAISED)


@pytest.mark.parametrize("error", [errors.NoSuchDeviceError, errors.UnknownDeviceError])
@pytest.mark.parametrize("name", ["", "  "])
def test_device_without_a_name(error: type[errors.NoSuchDeviceError], name: str) -> None:
    """An empty name, as of a variable that is not set, is called that and not shown as a name."""
    assert str(error(name, ("cpu",))).startswith("The name of the device is empty. ")
