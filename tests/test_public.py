"""The public surface is one list."""

from __future__ import annotations

import importlib
import pickle

import pytest
import torch
import transformers

import safe_dtype
from safe_dtype import errors
from safe_dtype.facts import dtypes
from safe_dtype.guarding import Attempt
from safe_dtype.planning import Candidate, Cost, Decision, Ground


def test_public_names() -> None:
    """`dir`, `__all__` and what can be imported are the same."""
    assert dir(safe_dtype) == sorted(safe_dtype.__all__)
    for name in safe_dtype.__all__:
        assert getattr(safe_dtype, name) is not None


def test_unknown_name() -> None:
    """A name that does not exist is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="has no AutoModelForNothing"):
        safe_dtype.SafeAutoModelForNothing  # noqa: B018
    with pytest.raises(AttributeError, match="nonsense"):
        safe_dtype.nonsense  # noqa: B018


AUTO_CLASSES = [name for name in dir(transformers) if name.startswith("AutoModelFor")]


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_every_auto_class(name: str) -> None:
    """Every AutoModelForX of the installed transformers has its SafeAutoModelForX, which pickles by name."""
    safe = getattr(safe_dtype, f"Safe{name}")
    assert safe.auto_class is getattr(transformers, name)
    assert pickle.loads(pickle.dumps(safe)) is safe


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_dtype_facts(dtype: dtypes.Dtype) -> None:
    """A Dtype says of its format what torch says."""
    theirs = getattr(torch, dtype.name)
    assert dtype.itemsize == theirs.itemsize
    assert dtype.is_floating_point == theirs.is_floating_point
    if dtype.is_floating_point:
        finfo = torch.finfo(theirs)
        assert (dtype.largest, dtype.smallest_normal, dtype.epsilon) == (finfo.max, finfo.smallest_normal, finfo.eps)
    else:
        assert dtype.largest == torch.iinfo(theirs).max


@pytest.mark.parametrize("wide", dtypes.ALL, ids=str)
@pytest.mark.parametrize("narrow", [one for one in dtypes.ALL if one.is_floating_point], ids=str)
def test_holds(wide: dtypes.Dtype, narrow: dtypes.Dtype) -> None:
    """`holds` agrees with casting every value (or a dense sample of float32) there and back."""
    if wide.is_floating_point and narrow.itemsize <= 2:
        kind = {1: torch.uint8, 2: torch.int16}[narrow.itemsize]
        bits = torch.arange(2 ** (8 * narrow.itemsize)).to(kind)
        values = bits.view(getattr(torch, narrow.name)).float()
        values = values[values.isfinite()]
        back = values.to(getattr(torch, wide.name)).float()
        assert wide.holds(narrow) == bool((back == values).all())
    else:
        assert wide.holds(narrow) == (wide == narrow)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("bf16", dtypes.BFLOAT16),
        ("torch.float16", dtypes.FLOAT16),
        (" FP32 ", dtypes.FLOAT32),
        ("fp8", dtypes.FLOAT8_E4M3),
    ],
)
def test_dtype_named(text: str, dtype: dtypes.Dtype) -> None:
    """Torch's names and the usual short ones are read."""
    assert dtypes.dtype_named(text) == dtype


DECISION = Decision(
    Candidate(dtypes.FLOAT16, dtypes.FLOAT16), Ground.RANGE, "ends at 65504", Cost(None, None, 1, 1, 1)
)
EXAMPLES = [
    errors.UnknownDtypeError("bf17", ("float32",)),
    errors.PolicyError("fast", "unknown word"),
    errors.NoSuchDeviceError("cuda:7", ("cpu",)),
    errors.ProbeError("cpu", "no memory"),
    errors.CheckpointNotFoundError("x", "no such folder", "check the name"),
    errors.GatedCheckpointError("x", "gated", "log in"),
    errors.CorruptCheckpointError("x", "truncated", "download it again"),
    errors.MissingShardError("x", "two files missing"),
    errors.UnsafeCheckpointError("x", "pickled code"),
    errors.NoSafeDtypeError("x", "cpu", (DECISION,)),
    errors.StrictModeError("float16", "wrong", ("float32",)),
    errors.ConflictError("dtype", "float16", "float32"),
    errors.NoPlanError("BertModel"),
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
    errors.NotOptimizableError("its inputs are not known", "pass some"),
    errors.NotOptimizedError("out", "there is no optimization.json in it"),
    errors.UntrustedFolderError("out", "native code"),
    errors.NotPublishableError("not-started", "org/m", "its license is not known", "nothing", "name it"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_pickle(error: errors.SafeDtypeError) -> None:
    """Every error survives pickling with its facts, and its text names the next step or the facts."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
    assert len(str(error)) > 10


def test_error_examples_are_complete() -> None:
    """Every leaf of the error tree is in the examples, and in the docstring that draws the tree."""
    module = importlib.import_module("safe_dtype.errors")
    leaves = {
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, errors.SafeDtypeError) and not one.__subclasses__()
    }
    assert leaves == {type(error) for error in EXAMPLES}
    for leaf in leaves:
        assert leaf.__name__ in str(module.__doc__)
