"""What another dtype does not cure, whatever dtype it names. Looked for before any family."""

from __future__ import annotations

from ...errors.of_the_moment import COMMUNICATION_TEXTS, LOST_TEXTS, MEMORY_TEXTS, is_raised_by_transport
from . import nonfinite
from .family import any_of

_REFUSED_TYPES = frozenset({
    "MemoryError", "OutOfMemoryError", "OutOfResources", "KeyError", "IndexError", "LookupError", "AttributeError",
    "NameError", "ImportError", "SyntaxError", "OSError", "UnicodeError", "EOFError", "ArithmeticError", "BufferError",
    "RecursionError", "StopIteration", "SafetensorError", "HfHubHTTPError", "HFValidationError", "StrictDataclassError",
    "StrictDataclassFieldValidationError", "StrictDataclassClassValidationError", "InvalidBackend", "DistError",
    "DistBackendError", "JSONDecodeError", "UnpicklingError", "SafeDtypeError",
    "Warning",  # a filter of the user's makes errors of them: ours too, whose text quotes a failure that is cured
})  # fmt: skip
_TAKEN_BACK = frozenset({"FloatingPointError"})  # an ArithmeticError, and ours
# Never a matter of dtypes, and some of it makes a second run harmful: these are not put to the test.
_VETOED = any_of(
    *MEMORY_TEXTS,
    *COMMUNICATION_TEXTS,
    # shapes
    r"shapes? cannot be multiplied|(?:size|shape) mismatch|Sizes of tensors must match|is invalid for input of size",
    r"must match the (?:existing )?size|The expanded size|expected input\[.*\] to have|inconsistent tensor size",
    r"Expected size for first two dimensions|loading state_dict|(?:Missing|Unexpected) keys?\b",
    r"not broadcast(?:able| compatible)|be broadcast(?:ed)? |must have the same (?:number of dimensions|shape|size)",
    r"dimension (?:out of range|specified)|Expected \d+D|Kernel size can't be greater|Calculated padded input size",
    r"stack expects each tensor",
    # indices
    r"index out of range|out of range in self|is out of bounds|srcIndex|t >= 0 && t < n_classes",
    r"idx_dim >= 0|indices? (?:should|must|element)|cur_target|token indices",
    # communication where nobody has ended: no dtype of the model cures what its transport cannot send
    r"ProcessGroup(?:MPI|UCC|XCCL|HCCL)|\bRCCL|oneCCL|HCCL|\bReduceOp\b",
    r"type mismatch in (?:\w+_)?(?:reduce|gather|scatter|broadcast)\b",
    # devices, drivers
    r"same device|two devices|Expected [^\n]{0,60} on (?:device|cuda|cpu)",
    r"Input type \(torch\.cuda\.\w+\) and \w+ type \(torch\.(?!cuda)\w+Tensor",
    r"Input type \(torch\.(?!cuda)\w+Tensor\) and \w+ type \(torch\.cuda",
    r"DEVICE_LOST|driver version|NVIDIA driver|CUDA driver|driver shutting down|Watchdog",
    r"NOT_INITIALIZED|library not initialized|no kernel image",
    r"invalid device ordinal|No CUDA GPUs|peer access|ECC error|initialization error",
    # files
    r"No such file|does not appear to have a file|no file named|Repo id must|couldn't connect|gated repo|Client Error",
    r"header ?too|deserializing header",
)
# As a rule no matter of dtypes either. Only an experiment shows the exceptions.
_UNLIKELY = any_of(
    r"view size is not compatible|(?:not a multiple of|(?:must|should) be divisible)",
    r"indexSelect|index_select|IndexKernel|ScatterGatherKernel",
    r"not compiled with|CUBLAS_STATUS_(?:INVALID_VALUE|INTERNAL_ERROR)|unknown error",
    # configuration
    r"trust_remote_code|does not recognize this architecture|Unrecognized (?:config|model)",
    r"unexpected keyword|missing \d+ required|multiple values for|has no (?:attribute|member)|is not defined",
    r"not subscriptable|not callable|`?dtype`? can be one of|Specified `attn_implementation|Invalid backend|device_map",
    r"must be a string or a torch\.dtype|strictly positive|undefined symbol|seem to be installed|is not installed",
    r"pip install|Failed to import|model_kwargs",
    # dtypes that no choice of a floating one cures
    r"tensors used as indices|index tensor of type|target dtype to be|could not infer output dtype",
    r"can require gradients|can't convert np|Could not run 'aten::|not current(?:ly)? implemented for the MPS",
    r"could not create a primitive$|to be Float8 matrix|complex(?:64|128|float|double)",
)
# Lost without a word about why.
_LOST = any_of(r"DEVICE_LOST|ECC error|launch timed out|fallen off the bus|device (?:has been|was) (?:lost|removed)")
_STICKY = any_of(*LOST_TEXTS)


def is_refused(exc: BaseException, text: str) -> bool:
    """Whether `exc`, whose text is `text`, is about memory, shapes, indices, devices, drivers, files or configuration."""
    names = {base.__name__ for base in type(exc).__mro__}
    if not isinstance(exc, Exception) or (names & _REFUSED_TYPES and not names & _TAKEN_BACK):
        return True
    if is_raised_by_transport(exc):
        return True
    if is_sticky(text):
        # An assert or an illegal access may have any cause; these two are of a dtype.
        return not nonfinite.FAMILY.texts.search(text) and "R_16" not in text
    return is_vetoed_text(text) or _UNLIKELY.search(text) is not None


def is_vetoed_text(text: str) -> bool:
    """Whether `text` is about memory, shapes, indices, devices, drivers, communication or files."""
    return _VETOED.search(text) is not None


def is_sticky(text: str) -> bool:
    """Whether the process has lost its device by this failure, which may be one of a dtype."""
    return _STICKY.search(text) is not None


def is_lost(text: str) -> bool:
    """Whether the process has lost its device, by whatever failure: nothing that lies on it can be read any more."""
    return is_sticky(text) or _LOST.search(text) is not None
