"""What another dtype does not cure, whatever dtype it names. Looked for before any family."""

from __future__ import annotations

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
_REFUSED = any_of(
    # memory
    r"out of memory|OUT_OF_(?:HOST_|DEVICE_)?MEMORY|OUT_OF_RESOURCES|out of resource|ALLOC_FAILED|bad_alloc",
    r"(?:can'?t|cannot|could not|unable to|failed to) allocate|tried to allocate|No available (?:memory|blocks)",
    r"not enough (?:GPU |free |shared )?memory|insufficient memory",
    # shapes
    r"shapes? cannot be multiplied|(?:size|shape) mismatch|Sizes of tensors must match|is invalid for input of size",
    r"must match the (?:existing )?size|The expanded size|expected input\[.*\] to have|inconsistent tensor size",
    r"Expected size for first two dimensions|loading state_dict|Missing key|Unexpected key",
    r"not broadcast(?:able| compatible)|be broadcast(?:ed)? |must have the same (?:number of dimensions|shape|size)",
    r"dimension (?:out of range|specified)|Expected \d+D|Kernel size can't be greater|Calculated padded input size",
    r"stack expects each tensor|view size is not compatible|(?:not a multiple of|(?:must|should) be divisible)",
    # indices
    r"index out of range|out of range in self|is out of bounds|srcIndex|indexSelect|t >= 0 && t < n_classes|index_select",
    r"idx_dim >= 0|IndexKernel|ScatterGatherKernel|indices? (?:should|must|element)|cur_target|token indices",
    # devices and drivers
    r"same device|two devices|Expected [^\n]{0,60} on (?:device|cuda|cpu)",
    r"Input type \(torch\.cuda\.\w+\) and \w+ type \(torch\.(?!cuda)\w+Tensor",
    r"Input type \(torch\.(?!cuda)\w+Tensor\) and \w+ type \(torch\.cuda",
    r"DEVICE_LOST|driver version|NVIDIA driver|CUDA driver|driver shutting down|Watchdog|NCCL|not compiled with",
    r"NOT_INITIALIZED|library not initialized|CUBLAS_STATUS_(?:INVALID_VALUE|INTERNAL_ERROR)|no kernel image",
    r"invalid device ordinal|No CUDA GPUs|unknown error|peer access|ECC error|initialization error",
    # files and configuration
    r"No such file|does not appear to have a file|no file named|Repo id must|couldn't connect|gated repo|Client Error",
    r"header ?too|deserializing header|trust_remote_code|does not recognize this architecture|Unrecognized (?:config|model)",
    r"unexpected keyword|missing \d+ required|multiple values for|has no (?:attribute|member)|is not defined",
    r"not subscriptable|not callable|`?dtype`? can be one of|Specified `attn_implementation|Invalid backend|device_map",
    r"must be a string or a torch\.dtype|strictly positive|undefined symbol|seem to be installed|is not installed",
    r"pip install|Failed to import|model_kwargs",
    # dtypes that no choice of a floating one cures
    r"tensors used as indices|index tensor of type|target dtype to be|could not infer output dtype",
    r"can require gradients|can't convert np|Could not run 'aten::|not current(?:ly)? implemented for the MPS",
    r"could not create a primitive$|to be Float8 matrix|complex(?:64|128|float|double)",
)
_STICKY = any_of(
    r"device-side assert|illegal (?:memory access|address|instruction)|misaligned address|unspecified launch failure",
    r"sampleMultinomialOnce|_assert_async|HSA_STATUS_ERROR",
)


def is_refused(exc: BaseException, text: str) -> bool:
    """Whether `exc`, whose text is `text`, is about memory, shapes, indices, devices, drivers, files or configuration."""
    names = {base.__name__ for base in type(exc).__mro__}
    if not isinstance(exc, Exception) or (names & _REFUSED_TYPES and not names & _TAKEN_BACK):
        return True
    if is_sticky(text):
        # An assert or an illegal access may have any cause; these two are of a dtype.
        return not nonfinite.FAMILY.texts.search(text) and "R_16" not in text
    return _REFUSED.search(text) is not None


def is_sticky(text: str) -> bool:
    """Whether the process has lost its device by this failure."""
    return _STICKY.search(text) is not None
