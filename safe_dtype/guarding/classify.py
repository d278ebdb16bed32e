"""Is this error one that another dtype, another kernel or another form of the model can cure?

The only module that knows the texts of torch and of the libraries around it. A wrong yes is worse than a wrong no: it
retries what cannot be cured, so whatever looks like memory, shapes, indices, devices, drivers, files or configuration
is refused first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, Dtype
from .failure import Failure, FailureKind

# How libraries spell a floating dtype. Longest first: "bf16" holds "f16", "BFloat16" holds "Float16".
_SPELLINGS: tuple[tuple[Dtype, str], ...] = (
    (FLOAT8_E4M3, r"float8(?:_?e\d+m\d+\w*)?|f8e\dm\d\w*|fp8(?:e\d\w*)?|CUDA_R_8F\w*"),
    (BFLOAT16, r"bfloat16|bf16|N3c108BFloat16E?|CUDA_R_16BF|R_16BF"),
    (FLOAT16, r"float16|fp16|f16|half(?:tensor)?|N3c104HalfE?|CUDA_R_16F|R_16F|complexhalf|complex32"),
    (FLOAT32, r"float32|fp32|f32|float(?:tensor)?|CUDA_R_32F|R_32F"),
)
_DTYPE = re.compile(
    r"(?<![A-Za-z0-9])(?:MPS|DT_)?_?(?:"
    + "|".join(f"(?P<d{index}>{spelling})" for index, (_, spelling) in enumerate(_SPELLINGS))
    + r")(?:Type)?(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_FLOAT = r"(?:torch\.)?(?:bfloat16|bf16|float16|fp16|half|float8\w*|fp8\w*)\b"

_REFUSED_TYPES = frozenset({
    "MemoryError", "OutOfMemoryError", "OutOfResources", "KeyError", "IndexError", "LookupError", "AttributeError",
    "NameError", "ImportError", "SyntaxError", "OSError", "UnicodeError", "EOFError", "ArithmeticError", "BufferError",
    "RecursionError", "StopIteration", "SafetensorError", "HfHubHTTPError", "HFValidationError", "StrictDataclassError",
    "StrictDataclassFieldValidationError", "StrictDataclassClassValidationError", "InvalidBackend", "DistError",
    "DistBackendError", "JSONDecodeError", "UnpicklingError", "SafeDtypeError",
})  # fmt: skip
_TAKEN_BACK = frozenset({"FloatingPointError"})  # an ArithmeticError, and ours


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)


_REFUSED = _any(
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
_STICKY = _any(
    r"device-side assert|illegal (?:memory access|address|instruction)|misaligned address|unspecified launch failure",
    r"sampleMultinomialOnce|_assert_async|HSA_STATUS_ERROR",
)

# In this order: the first family that is found decides.
_FAMILIES: dict[FailureKind, re.Pattern[str]] = {
    FailureKind.NONFINITE: _any(
        r"probability tensor contains|sampleMultinomialOnce|invalid multinomial distribution \(sum|returned (?:nan|inf)\w* values|without overflow",
        r"\bNaNs?\b.{0,40}(?:produced|detected|found|encountered|in )",
        r"(?:produced|detected|found|encountered|contains?|got|is|are|becomes?|became|all) (?:a |an |all |any |either )?['\"`]?"
        r"(?:NaNs?|inf|infinity|non-?finite)\b",
        r"\b(?:non-?finite|infinite or nan|nan or inf|inf or nan|nan/inf|inf/nan)\b",
        r"minimum loss scale|loss scal\w+ .{0,60}(?:minimum|too small|zero)|floating[- ]point overflow",
    ),
    FailureKind.EXPORT_GRAPH: _any(
        r"INVALID_GRAPH|bound to different types|Type '?tensor\((?:b?float16|float8\w*)\)",
        r"Tracer cannot infer|traced functions|dynamic control flow|data[- ]dependent|Could not guard on",
        r"torch\.export\.export|torch\._dynamo\.exc|Constraints? violated|Graph break|skip_files|fullgraph=True",
        r"op returned non-Tensor|dynamo-exported|Unsupported operator aten",
        r"Exporting the operator|Unsupported ONNX|Failed to export|(?:onnx|opset)\b.{0,80}(?:not supported|unsupported)",
    ),
    FailureKind.KERNEL_ARCH: _any(
        r"No operator found for `?memory_efficient|No available kernel|no (?:suitable )?kernel found",
        r"not supported in this architecture|ARCH_MISMATCH|requires \.target sm_",
        rf"{_FLOAT}.{{0,20}}requires? sm_?\d\d",
        r"requires? (?:a )?(?:device|GPU)s? with (?:compute )?capability|scaled_\w*mm.{0,40}only supported",
        r"(?:kernel|attention|flash|cutlass|triton|marlin|machete|deepgemm)\S*.{0,80}"
        r"(?:requires?|only supports?|only supported|needs?|works? on).{0,60}"
        r"(?:sm_?\d\d|compute capability|Ampere|Hopper|\bAda\b|Turing|Volta|Blackwell)",
    ),
    FailureKind.POLICY_REFUSAL: _any(
        r"unsupported ScalarType|\bB?float16 is only supported on GPUs|Supported dtypes:|only supports? `?dtype",
        rf"(?:doesn't|does not|do not|cannot|can't) support (?:\w+ )?{_FLOAT}|data type '?{_FLOAT}'? not understood",
        rf"{_FLOAT}.{{0,30}}\brequested\b|requested .{{0,20}}{_FLOAT}.{{0,20}}compute type|AMP is not supported",
        rf"(?:path|backend|method|quantization|model|loader|trainer)\w* .{{0,40}}(?:requires?|only supports?) .{{0,20}}{_FLOAT}",
        rf"unscale FP16 gradients|prepack needs|type {_FLOAT} is not supported|not supported for quantization",
        r"mixed precision .{0,40}(?:requires|is not supported)|(?:fp16|bf16|half precision)\b.{0,120}can only be used",
        r"Your (?:setup|GPU|device|hardware|CPU)\b.{0,30}(?:not|n't) support|(?:bf16|fp16)\b.{0,40}(?:need|require)s? Ampere",
        rf"can(?:no|')t use {_FLOAT}|(?:compute capability|Ampere|Hopper)\b.{{0,40}}{_FLOAT}",
        rf"{_FLOAT}.{{0,60}}(?:requires?|needs?|only available|only works).{{0,40}}(?:capability|Ampere|Hopper|CUDA|GPU)",
        rf"(?:GPU|device|hardware|CPU|platform|card)\b.{{0,30}}(?:not|n't) support.{{0,20}}{_FLOAT}",
    ),
    FailureKind.DTYPE_MISMATCH: _any(
        r"(?:should|must|expected to|have to|need to|to) (?:all )?(?:be|have) (?:the )?(?:same|match|equal|consistent)",
        r"expected (?:scalar type|dtype|m1 and m2|mat1 and mat2|.{0,30} to have dtype)|Found dtype .{0,40} but expected",
        r"same (?:d|data |scalar )type|dtypes? (?:must )?match|d?type mismatch|dtypes? (?:do|does)(?: not|n't) match",
        r"does not match .{0,30}(?:dtype|type)|to match query dtype|mixed dtype|should be the same|must be the same",
        r"Expected .{0,60}d?type .{0,60}(?:but|got)|(?:object|tensor) of (?:scalar )?type .{1,60} but (?:got|found)",
        r"Expected \S*dtype to be .{1,40}got|can't be cast to the desired output type|Unexpected input data type",
        r"incompatible (?:dtypes|data types|tensor types)|element types .{0,40}(?:differ|match|same)",
    ),
    FailureKind.OP_UNSUPPORTED: _any(
        r"not implemented for|not_implemented|unsupported (?:data ?type|dtype|scalar ?type|(?:input |tensor )?type|floating)",
        r"(?:doesn't|does not|don't|not) (?:support|handle) (?:tensors? of )?(?:type|dtype|low precision|half|b?float)",
        r"Low[- ]precision dtypes? not supported|must be (?:either |of |in )?(?:dtype of |a )?(?:torch\.)?(?:float|double|fp16|bf16|half|bfloat)",
        rf"{_FLOAT}.{{0,30}}(?:is|are|was|not) (?:currently )?(?:not )?(?:yet )?(?:supported|implemented|available)",
        rf"(?:not|un)[- ]?support(?:ed)?.{{0,40}}\b{_FLOAT}|{_FLOAT}.{{0,40}}\bonly supported",
        rf"expect\w* .{{1,40}} to be {_FLOAT}|only supports? (?:the )?{_FLOAT}|not in the list of allowed values",
        r"(?:CUBLAS|CUDNN|HIPBLAS|CUSPARSE)_STATUS_NOT_SUPPORTED|miopenStatusNotImplemented|UNIMPLEMENTED",
        r"(?:EXECUTION_FAILED|illegal memory access|requested functionality is not supported).*R_16B?F",
        rf"floating point or complex tensor as input.{{0,10}}{_FLOAT}",
        r"valid cuDNN algorithm|find an engine|powers of two when computing in half|path needs the cpu support",
        rf"Promotion for Float8|Unable to load kernel .*{_FLOAT}|no (?:kernel|implementation).{{0,60}}{_FLOAT}",
    ),
}
# These name no dtype, and are ours all the same.
_SPEAKS_FOR_ITSELF = _any(
    r"STATUS_NOT_SUPPORTED|miopenStatusNotImplemented|cuDNN algorithm|find an engine|either float or double",
    r"other than float and double",
)
_GRAPH_TYPES = frozenset({
    "Unsupported", "UserError", "GuardOnDataDependentSymNode", "ConstraintViolationError", "InvalidGraph",
    "UnsupportedOperatorError", "TorchExportError",
})  # fmt: skip
_WRAPPERS = frozenset({
    "InductorError", "BackendCompilerFailed", "LoweringException", "TorchRuntimeError", "InternalTorchDynamoError",
})  # fmt: skip

_INTEGER = re.compile(
    r"(?<![A-Za-z])(?:u?int(?:8|16|32|64)?|long(?: long)?|short|byte|(?:un)?(?:signed )?char|bool)(?:Tensor|Type)?"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_NO_INTEGER = "bool or float"  # what attention says of its mask, whose other side it then names
_ALLOWED = _any(
    r"Supported dtypes:[^\n]*|support list \[[^\]]*\]|allowed values:[^\n]*|switch dtype to[^\n.]*",
    r"use (?:torch\.)?b?float\d+[^\n.]{0,20}|only supports? `?dtype[^\n]*|types other than [^\n]*",
    r"only supports? (?:the )?(?:torch\.)?(?:fp16|bf16|b?float16|half)[^\n]*?(?=,|\.\s|but|$)",
    r"expect\w* .{1,40}? to be [^,\n]*|must be (?:either )?(?:float|double)[^,\n]*",
    r"requires? (?:torch\.)?(?:bfloat16|float16)[^,\n]*|only b?f(?:loat|p)?16[^\n.]*(?:supported|allowed)",
)
_SUSPECTS = (FLOAT8_E4M3, BFLOAT16, FLOAT16, FLOAT32)
_CHAIN_LENGTH = 16


def classify(exc: BaseException) -> Failure | None:
    """Return what `exc` is a failure of, or None where another dtype would not cure it.

    Causes are followed, and contexts of wrappers that say nothing themselves: an error raised while another one was
    handled is otherwise its own affair.
    """
    for link in _chain(exc):
        text = _text(link)
        if _is_refused(link, text):
            return None
        found = _match(link, text)
        if found is not None:
            return found
    return None


def _chain(exc: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen and len(seen) < _CHAIN_LENGTH:
        seen.add(id(link))
        yield link
        following = link.__cause__
        if (
            following is None
            and not link.__suppress_context__
            and (not _text(link) or type(link).__name__ in _WRAPPERS)
        ):
            following = link.__context__
        link = following


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001  (an exception that cannot be printed says nothing)
        return ""


def _is_refused(exc: BaseException, text: str) -> bool:
    names = {one.__name__ for one in type(exc).__mro__}
    if not isinstance(exc, Exception) or (names & _REFUSED_TYPES and not names & _TAKEN_BACK):
        return True
    if _STICKY.search(text):
        # An assert or an illegal access may have any reason; these two have ours.
        return not _FAMILIES[FailureKind.NONFINITE].search(text) and "R_16" not in text
    return _REFUSED.search(text) is not None


def _match(exc: BaseException, text: str) -> Failure | None:
    if type(exc).__name__ in _GRAPH_TYPES:
        kind: FailureKind | None = FailureKind.EXPORT_GRAPH
    else:
        kind = next((kind for kind, texts in _FAMILIES.items() if texts.search(text)), None)
    dtypes = _dtypes(text)
    if kind is FailureKind.DTYPE_MISMATCH and (not dtypes or _INTEGER.search(text.replace(_NO_INTEGER, ""))):
        return None
    if kind is FailureKind.OP_UNSUPPORTED and not dtypes and not _SPEAKS_FOR_ITSELF.search(text):
        return None
    if kind is None:
        return None
    allowed = tuple(dict.fromkeys(one for found in _ALLOWED.finditer(text) for one in _dtypes(found[0])))
    suspects = [one for one in dtypes if one not in allowed]
    if kind is FailureKind.DTYPE_MISMATCH:
        suspects, allowed = list(dtypes), ()
    # float32 is the wide side of a mismatch; of two 16-bit ones bfloat16 is the one that fewer devices have.
    failed = min(suspects, key=_SUSPECTS.index, default=None)
    return Failure(kind, text, failed, dtypes, allowed, sticky=_STICKY.search(text) is not None)


def _dtypes(text: str) -> tuple[Dtype, ...]:
    """Return every floating dtype that `text` names, in its order, each once."""
    found = (int(str(one.lastgroup)[1:]) for one in _DTYPE.finditer(text))
    return tuple(dict.fromkeys(_SPELLINGS[index][0] for index in found))
