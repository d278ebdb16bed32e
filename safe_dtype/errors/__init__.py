"""Every error safe_dtype raises on purpose.

    SafeDtypeError
    ├── UnknownDtypeError        (ValueError)   no such number format
    ├── PolicyError              (ValueError)   a policy that cannot be read
    ├── DeviceError              (RuntimeError)
    │   ├── NoSuchDeviceError                   the device asked for is not here
    │   │   └── UnknownDeviceError              no product of this name is known
    │   └── ProbeError                          the measurement itself could not run
    ├── CheckpointError          (OSError)
    │   ├── CheckpointNotFoundError             no folder, file, cached or remote repository of that name
    │   ├── GatedCheckpointError                the Hub asks for a login or for access
    │   ├── CorruptCheckpointError              a header or file that contradicts itself
    │   ├── MissingShardError                   the index names files that are not there
    │   └── UnsafeCheckpointError               reading it would run code of the checkpoint
    ├── PlanError                (ValueError)
    │   ├── NoSafeDtypeError                    every candidate was rejected
    │   │   └── NothingFitsError                no dtype fits, nor the largest weight with the others on disk
    │   ├── StrictModeError                     the dtype ordered in strict mode was rejected, or failed
    │   ├── ConflictError                       the caller and the plan contradict each other
    │   │   └── StalePlanError                  the plan was made for another checkpoint, device or software
    │   ├── NoPlanError                         the model was not loaded by safe_dtype
    │   └── NotServableError                    vLLM would compute something else than the model
    ├── QuantizerPackageError    (ImportError)  a quantized model needs packages that are not installed
    ├── GuardError               (RuntimeError)
    │   ├── NotGuardedError                     the model has no guard
    │   ├── NoDtypeLeft                         a step failed, and so did every remedy
    │   ├── CannotResumeError                   the step cannot be run again, nor the call begun anew
    │   └── DeviceLostError                     the process has lost its device
    ├── RescaleError             (RuntimeError) a model that an exact rescaling cannot be put into
    ├── TrainingError            (RuntimeError)
    │   ├── HalfParametersError                 16-bit parameters under an optimizer
    │   ├── NeedsRestart                        the precision is built into an engine
    │   ├── NotSwitchableError                  the precision of this Accelerator cannot be changed
    │   ├── TrainingDoesNotFitError             no way to make a step fits into memory; has the bytes
    │   └── TrainingLoopError                   a failed window of this loop cannot be run again
    ├── LaunchError              (ValueError)   a launch that cannot be configured or started
    ├── RanksError               (RuntimeError)
    │   ├── PeerLostError                       a rank has ended, or does not answer
    │   ├── RanksDisagreeError                  the ranks do not hold the same checkpoint, policy or plan
    │   └── RemoteFailure                       another rank failed, and this one ends with it
    ├── VerifyError              (RuntimeError)
    │   ├── UnsteadyReferenceError              the reference does not repeat itself
    │   ├── DegenerateReferenceError            the reference says nothing: not finite, or the same of everything
    │   ├── IncomparableOutputsError            reference and candidate answer in different shapes, or to other inputs
    │   └── NothingToCompareError               no batches, or none of their positions counts
    ├── OptimizeError            (RuntimeError)
    │   ├── EnvironmentNotFitError              something that is needed is missing on this machine
    │   ├── NotOptimizableError                 a model or inputs that no form can be judged with
    │   ├── NotExportableError                  a model that a format does not hold; no file was left
    │   ├── BackupError                         the original cannot be kept, or is kept in another state
    │   ├── NotRestorableError                  the backup is damaged, or not where it was made; nothing was written
    │   ├── NotOptimizedError                   a folder that `optimize` did not write, or that was changed since
    │   └── UntrustedFolderError                loading it would run code that was not made on this machine
    └── PublishError             (RuntimeError) nothing was published, or not what should have been: `state` says which
        └── NotPublishableError                 the staged folder must not be published as it is; nothing was sent

Facts are attributes; `args` equals the arguments of `__init__`, so every error survives pickling to another process.
"""

from .base import SafeDtypeError, SafeDtypeWarning
from .checkpoints import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    GatedCheckpointError,
    MissingShardError,
    UnsafeCheckpointError,
)
from .devices import DeviceError, NoSuchDeviceError, ProbeError, UnknownDeviceError, UnknownDtypeError
from .guarding import CannotResumeError, DeviceLostError, GuardError, NoDtypeLeft, NotGuardedError, RescaleError
from .launches import LaunchError
from .optimizing import (
    BackupError,
    EnvironmentNotFitError,
    NotExportableError,
    NotOptimizableError,
    NotOptimizedError,
    NotRestorableError,
    OptimizeError,
    UntrustedFolderError,
)
from .planning import (
    ConflictError,
    NoPlanError,
    NoSafeDtypeError,
    NothingFitsError,
    NotServableError,
    PlanError,
    PolicyError,
    QuantizerPackageError,
    StalePlanError,
    StrictModeError,
)
from .publishing import NotPublishableError, PublishError
from .ranks import PeerLostError, RanksDisagreeError, RanksError, RemoteFailure
from .training import (
    HalfParametersError,
    NeedsRestart,
    NotSwitchableError,
    TrainingDoesNotFitError,
    TrainingError,
    TrainingLoopError,
)
from .verifying import (
    DegenerateReferenceError,
    IncomparableOutputsError,
    NothingToCompareError,
    UnsteadyReferenceError,
    VerifyError,
)

__all__ = [
    "BackupError",
    "CannotResumeError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConflictError",
    "CorruptCheckpointError",
    "DegenerateReferenceError",
    "DeviceError",
    "DeviceLostError",
    "EnvironmentNotFitError",
    "GatedCheckpointError",
    "GuardError",
    "HalfParametersError",
    "IncomparableOutputsError",
    "LaunchError",
    "MissingShardError",
    "NeedsRestart",
    "NoDtypeLeft",
    "NoPlanError",
    "NoSafeDtypeError",
    "NoSuchDeviceError",
    "NotExportableError",
    "NotGuardedError",
    "NotOptimizableError",
    "NotOptimizedError",
    "NotPublishableError",
    "NotRestorableError",
    "NotServableError",
    "NotSwitchableError",
    "NothingFitsError",
    "NothingToCompareError",
    "OptimizeError",
    "PeerLostError",
    "PlanError",
    "PolicyError",
    "ProbeError",
    "PublishError",
    "QuantizerPackageError",
    "RanksDisagreeError",
    "RanksError",
    "RemoteFailure",
    "RescaleError",
    "SafeDtypeError",
    "SafeDtypeWarning",
    "StalePlanError",
    "StrictModeError",
    "TrainingDoesNotFitError",
    "TrainingError",
    "TrainingLoopError",
    "UnknownDeviceError",
    "UnknownDtypeError",
    "UnsafeCheckpointError",
    "UnsteadyReferenceError",
    "UntrustedFolderError",
    "VerifyError",
]
