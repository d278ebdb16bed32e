"""Is this error one that another dtype, another kernel or another form of the model can cure?

The only module that knows the texts of torch and of the libraries around it. A wrong yes is worse than a wrong no: it
retries what cannot be cured, so whatever looks like memory, shapes, indices, devices, drivers, files or configuration
is refused first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..dtypes import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, Dtype
from .failure import Failure, FailureKind

_OP, _ARCH, _MISMATCH = FailureKind.OP_UNSUPPORTED, FailureKind.KERNEL_ARCH, FailureKind.DTYPE_MISMATCH
_NONFINITE, _POLICY, _GRAPH = FailureKind.NONFINITE, FailureKind.POLICY_REFUSAL, FailureKind.EXPORT_GRAPH

# How libraries spell a floating dtype. Longest first: "bf16" holds "f16", "BFloat16" holds "Float16".
_SPELLINGS: tuple[tuple[Dtype, str], ...] = (
    (FLOAT8_E4M3, r"float8(?:_?e\d+m\d+\w*)?|f8e\dm\d\w*|fp8(?:e\d\w*)?|CUDA_R_8F\w*"),
    (BFLOAT16, r"bfloat16|bf16|N3c108BFloat16E?|CUDA_R_16BF|R_16BF"),
    (FLOAT16, r"float16|fp16|f16|half(?:tensor)?|N3c104HalfE?|CUDA_R_16F|R_16F|complexhalf|complex32"),
    (FLOAT32, r"float32|fp32|f32|float(?:tensor)?|CUDA_R_32F|R_32F"),
)
_DTYPE = re.compile(
    r"(?<![A-Za-z0-9])_?(?:"
    + "|".join(f"(?P<d{index}>{spelling})" for index, (_, spelling) in enumerate(_SPELLINGS))
    + r")(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_INTEGER = (
    r"(?:u?int(?:\d+)?|long(?: long)?|short|byte|char|unsigned char|signed char|bool|(?:Long|Int|Byte|Bool)Tensor)"
)
_FLOAT = r"(?:bfloat16|bf16|float16|fp16|half|float8\w*|fp8\w*)"

_REFUSED_TYPES = frozenset({
    "MemoryError", "OutOfMemoryError", "OutOfResources", "KeyError", "IndexError", "LookupError", "AttributeError", "NameError",
    "ImportError", "SyntaxError", "OSError", "UnicodeError", "EOFError", "ArithmeticError", "RecursionError", "StopIteration",
    "SafetensorError", "HfHubHTTPError", "HFValidationError", "StrictDataclassError", "StrictDataclassFieldValidationError",
    "StrictDataclassClassValidationError", "InvalidBackend", "DistBackendError", "DistError", "BufferError", "JSONDecodeError",
    "SafeDtypeError",
})  # fmt: skip
_EXCEPT = frozenset({"FloatingPointError"})  # an ArithmeticError, and ours

_REFUSED = re.compile(
    "|".join([
        # memory
        r"out of memory|OUT_OF_(?:HOST_)?MEMORY|OUT_OF_(?:DEVICE_)?MEMORY|OUT_OF_RESOURCES|out of resource|ALLOC_FAILED",
        r"(?:can'?t|cannot|could not|unable to|failed to) allocate|not enough (?:GPU |free )?memory|insufficient memory",
        r"bad_alloc|Tried to allocate|No available memory|No available blocks",
        # shapes
        r"shapes? cannot be multiplied|size mismatch|shape mismatch|Sizes of tensors must match|is invalid for input of size",
        r"must match the (?:existing )?size|must match the size of tensor|The expanded size|expected input\[.*\] to have",
        r"Expected size for first two dimensions|loading state_dict|Missing key|Unexpected key|not broadcast(?:able| compatible)",
        r"inconsistent tensor size|must have the same (?:number of dimensions|shape|size)|dimension (?:out of range|specified)",
        r"Expected \d+D|expected \d+D|Kernel size can't be greater|Calculated padded input size|stack expects each tensor",
        r"view size is not compatible|not a multiple of|must be divisible|should be divisible|be broadcast(?:ed)? ",
        # indices
        r"index out of range|out of range in self|is out of bounds|srcIndex|indexSelect|t >= 0 && t < n_classes|idx_dim >= 0",
        r"index_select|IndexKernel|ScatterGatherKernel|indices? (?:should|must|element)|cur_target|token indices",
        # devices and drivers
        r"same device|two devices|Expected .{0,60} on (?:device|cuda|cpu)|weight type \(torch\.cuda|and weight type \(torch\.\w*\.?\w+Tensor\) should",
        r"DEVICE_LOST|driver version|NVIDIA driver|CUDA driver|driver shutting down|Watchdog|NCCL|not compiled with",
        r"NOT_INITIALIZED|library not initialized|CUBLAS_STATUS_INVALID_VALUE|CUBLAS_STATUS_INTERNAL_ERROR|no kernel image",
        r"invalid device ordinal|No CUDA GPUs|unknown error|peer access|ECC error|HIP error: invalid device|initialization error",
        # files and configuration
        r"No such file|does not appear to have a file|no file named|Repo id must|couldn't connect|gated repo|Client Error",
        r"HeaderToo|header too|deserializing header|trust_remote_code|does not recognize this architecture|Unrecognized (?:config|model)",
        r"unexpected keyword|missing \d+ required|multiple values for|has no attribute|is not defined|not subscriptable|not callable",
        r"`?dtype`? can be one of|Specified `attn_implementation|must be a string or a torch\.dtype|Invalid backend|device_map",
        r"strictly positive|undefined symbol|seem to be installed|is not installed|pip install|Failed to import",
        # dtypes that no choice of a floating one cures
        r"tensors used as indices|index tensor of type|target dtype to be|could not infer output dtype|can require gradients",
        r"can't convert np|Could not run 'aten::|not current(?:ly)? implemented for the MPS|could not create a primitive$",
        r"to be Float8 matrix|complex(?:64|128|float|double)|has no member",
    ]),
    re.IGNORECASE,
)  # fmt: skip
_STICKY = re.compile(
    r"device-side assert|illegal (?:memory access|address|instruction)|misaligned address|unspecified launch failure"
    r"|sampleMultinomialOnce|_assert_async|HSA_STATUS_ERROR", re.IGNORECASE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rule:
    """A family of texts. The first that is found decides."""

    kind: FailureKind
    pattern: re.Pattern[str]


def _rules(kind: FailureKind, *patterns: str) -> tuple[_Rule, ...]:
    return tuple(_Rule(kind, re.compile(one, re.IGNORECASE | re.DOTALL)) for one in patterns)


_PAIR = r"(?:same|match|equal|consistent)"
_RULES = (
    *_rules(
        _NONFINITE,
        r"probability tensor contains", r"sampleMultinomialOnce", r"returned (?:nan|inf)\w* values", r"\bNaNs?\b.{0,40}(?:produced|detected|found|encountered|in )",
        r"(?:produced|detected|found|encountered|contains?|got|is|are|becomes?) (?:a |an |all |any |either )?['\"`]?(?:NaN|nan|inf|infinity|non-?finite)\b",
        r"\b(?:non-?finite|infinite or nan|nan or inf|inf or nan|nan/inf|inf/nan)\b", r"minimum loss scale reached", r"loss scal\w+ .{0,60}(?:minimum|too small|zero)",
        r"without overflow", r"float(?:ing)?[- ]point (?:overflow|exception)",
    ),
    *_rules(
        _GRAPH,
        r"INVALID_GRAPH", r"Tracer cannot infer|traced functions", r"dynamic control flow", r"data[- ]dependent", r"torch\.export\.export|torch\._dynamo\.exc",
        r"Could not guard on|GuardOnDataDependent|Constraints? violated", r"(?:onnx|export)\w*.{0,80}(?:not supported|unsupported)|Unsupported ONNX|Exporting the operator",
        r"Graph break|call_function .* in skip_files|fullgraph=True", r"Type '?tensor\((?:b?float16|float8\w*)\)'?",
    ),
    *_rules(
        _ARCH,
        r"FlashAttention\w* (?:forward |backward )?only supports? (?!.*(?:fp16|bf16) (?:and|or))", r"No operator found for `?memory_efficient", r"not supported in this architecture",
        r"ARCH_MISMATCH", r"requires \.target sm_", r"requires? (?:a )?(?:device|GPU)s? with (?:compute )?capability", r"scaled_(?:grouped_)?mm.{0,40}only supported",
        r"no kernel found|No available kernel|no suitable (?:kernel|engine)", r"(?:kernel|attention|flash|cutlass|triton|marlin|machete|deepgemm).{0,80}(?:requires?|only supports?|only supported|needs?).{0,60}(?:sm_?\d\d|compute capability|Ampere|Hopper|Ada|Turing|Blackwell)",
        r"Invalid backend.{0,20}attention", r"cutlass\w* .{0,60}not supported on",
    ),
    *_rules(
        _POLICY,
        r"unsupported ScalarType", r"\bB?float16 is only supported on GPUs", rf"(?:doesn't|does not|do not|cannot|can't|not) support(?:ed)? (?:\w+ )?{_FLOAT}(?! (?:kernel|gemm))", r"(?:bf16|fp16|bfloat16|float16)\b.{0,30}\brequested\b",
        r"requested .{0,20}(?:float16|bfloat16|int8_float16).{0,20}compute type", rf"(?:path|backend|method|quantization|model|loader|trainer)\w* .{{0,40}}(?:requires?|only supports?) .{{0,20}}{_FLOAT}", r"Supported dtypes:",
        r"only supports? `?dtype", r"unscale FP16 gradients", r"prepack needs", rf"type {_FLOAT} is not supported", r"mixed precision .{0,40}requires", r"Your (?:setup|GPU|device|hardware) .{0,30}(?:not|n't) support",
        r"AMP is not supported", r"(?:bf16|fp16)\b.{0,40}(?:need|require)s? (?:Ampere|a |an )",
    ),
    *_rules(
        _MISMATCH,
        rf"(?:should|must|expected to|have to|need to|to) (?:all )?(?:be|have) (?:the )?{_PAIR}", r"expected (?:scalar type|dtype|m1 and m2|mat1 and mat2|.{0,30} to have dtype)", r"same dtype|same data ?type|same scalar type|dtypes? (?:must )?match|dtype mismatch|dtypes? (?:do not|does not|don't|doesn't) match",
        r"does not match (?:weight|bias|input|the) .{0,10}(?:dtype|type)|to match query dtype", r"mixed dtype", r"Expected .{0,60}dtype .{0,60}(?:but|got)", r"Found dtype .{0,40} but expected",
        r"input dtypes? must be the same|should be the same", r"incompatible (?:dtypes|data types|tensor types)|element types .{0,40}(?:differ|match|same)",
    ),
    *_rules(
        _OP,
        r"not implemented for", r"unsupported (?:data ?type|dtype|scalar ?type|input type|tensor type|type|floating)", r"(?:doesn't|does not|don't|not) (?:support|handle) (?:tensors? of )?(?:type|dtype|types|low precision|half|b?float)",
        r"Low[- ]precision dtypes? not supported", r"must be (?:either |of )?(?:a )?(?:float|floating|double)", rf"{_FLOAT}\b.{{0,30}}(?:is|are|was) (?:currently )?not (?:yet )?(?:supported|implemented|available)", rf"(?:not|un)[- ]?support(?:ed)?.{{0,40}}\b{_FLOAT}",
        rf"expect\w* .{{1,40}} to be (?:torch\.)?{_FLOAT}", r"CUBLAS_STATUS_NOT_SUPPORTED|CUDNN_STATUS_NOT_SUPPORTED|HIPBLAS_STATUS_NOT_SUPPORTED|CUSPARSE_STATUS_NOT_SUPPORTED", r"(?:EXECUTION_FAILED|illegal memory access|requested functionality is not supported).*(?:CUDA_R_16|R_16B?F|HIP_R_16)",
        r"(?:valid cuDNN algorithm|find an engine)", r"powers of two when computing in half", r"path needs the cpu support", rf"{_FLOAT}.{{0,40}}\bonly supported", r"Promotion for Float8", rf"Unable to load kernel .*{_FLOAT}",
        rf"(?:no|not) (?:kernel|implementation).{{0,60}}{_FLOAT}", rf"{_FLOAT} .{{0,20}}(?:requires?|needs?) ",
    ),
)  # fmt: skip

_INTEGER_SIDE = re.compile(
    rf"(?:got|found|dtypes?:?|type|expected|scalar type|and|!=|\()\s*\(?\s*(?:torch\.)?(?:c10::)?{_INTEGER}(?![A-Za-z0-9])", re.IGNORECASE
)  # fmt: skip
_ALLOWED = re.compile(
    r"Supported dtypes:[^\n]*|switch dtype to[^\n.]*|[Uu]se (?:torch\.)?b?float\d+[^\n.]{0,20}|only supports? `?dtype[^\n]*|only supports? (?:fp16|bf16)[^\n.]*"
    r"|expect\w* .{1,40}? to be [^,\n]*|must be (?:either )?(?:float|double)[^,\n]*|requires? (?:torch\.)?(?:bfloat16|float16)[^,\n]*|types other than [^\n]*"
    r"|only (?:fp16|bf16|float16|bfloat16|float32)[^\n.]*(?:supported|allowed)",
    re.IGNORECASE,
)  # fmt: skip
_SUSPECTS = (FLOAT8_E4M3, BFLOAT16, FLOAT16, FLOAT32)
_CHAIN_LENGTH = 16
_WRAPPERS = frozenset(
    {"InductorError", "BackendCompilerFailed", "LoweringException", "TorchRuntimeError", "InternalTorchDynamoError"}
)


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
    if not isinstance(exc, Exception) or (names & _REFUSED_TYPES and not names & _EXCEPT):
        return True
    if _STICKY.search(text):
        return not (_RULES[0].pattern.search(text) or _RULES[1].pattern.search(text) or "R_16" in text)
    return _REFUSED.search(text) is not None


def _match(exc: BaseException, text: str) -> Failure | None:
    named = f"{type(exc).__name__}: {text}" if type(exc).__name__ in _GRAPH_TYPES else text
    rule = next((one for one in _RULES if one.pattern.search(named)), None)
    if type(exc).__name__ in _GRAPH_TYPES:
        rule = _RULES_BY_KIND[_GRAPH]
    if rule is None:
        return None
    dtypes = _dtypes(text)
    if rule.kind is _MISMATCH and (_INTEGER_SIDE.search(text) or not dtypes):
        return None
    if rule.kind is _OP and not dtypes and not _NAMES_NO_DTYPE.search(text):
        return None
    allowed = tuple(dict.fromkeys(one for found in _ALLOWED.finditer(text) for one in _dtypes(found[0])))
    rest = [one for one in dtypes if one not in allowed] or ([] if rule.kind is not _MISMATCH else list(dtypes))
    # float32 is the wide side of a mismatch; of two 16-bit ones bfloat16 is the one that fewer devices have.
    failed = min(rest, key=_SUSPECTS.index, default=None)
    return Failure(rule.kind, text, failed, dtypes, allowed, sticky=_STICKY.search(text) is not None)


_GRAPH_TYPES = frozenset(
    {"Unsupported", "UserError", "GuardOnDataDependentSymNode", "ConstraintViolationError", "InvalidGraph"}
)
_RULES_BY_KIND = {rule.kind: rule for rule in _RULES}
_NAMES_NO_DTYPE = re.compile(
    r"STATUS_NOT_SUPPORTED|other than float and double|cuDNN algorithm|find an engine|either float or double",
    re.IGNORECASE,
)


def _dtypes(text: str) -> tuple[Dtype, ...]:
    """Return every floating dtype that `text` names, in its order, each once."""
    found = (int(str(one.lastgroup)[1:]) for one in _DTYPE.finditer(text))
    return tuple(dict.fromkeys(_SPELLINGS[index][0] for index in found))
