"""Which errors another dtype cures: real texts by family, real exceptions of this torch, and everything that is not."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, Dtype
from safe_dtype.guarding import FailureKind, classify

OP, ARCH, MISMATCH = FailureKind.OP_UNSUPPORTED, FailureKind.KERNEL_ARCH, FailureKind.DTYPE_MISMATCH
NONFINITE, POLICY, GRAPH = FailureKind.NONFINITE, FailureKind.POLICY_REFUSAL, FailureKind.EXPORT_GRAPH
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn


# The text, its kind, and the dtype that failed. From issues of torch, transformers, vLLM, xformers, triton, accelerate,
# DeepSpeed, CTranslate2, onnxruntime, and from the sources of torch.
OURS: list[tuple[str, FailureKind, Dtype | None]] = [
    ("at::cuda::blas::gemm: not implemented for struct c10::BFloat16", OP, BFLOAT16),
    ("at::cuda::blas::gemm: not implemented for N3c108BFloat16E", OP, BFLOAT16),
    ("at::cuda::blas::bgemm: not implemented for input type c10::Half and output type float", OP, FLOAT16),
    ("\"addmm_impl_cpu_\" not implemented for 'Half'", OP, FLOAT16),
    ("\"LayerNormKernelImpl\" not implemented for 'Half'", OP, FLOAT16),
    ("\"upsample_nearest2d_out_frame\" not implemented for 'BFloat16'", OP, BFLOAT16),
    ("\"RMSNormKernelImpl\" not implemented for 'Float8_e5m2'", OP, FLOAT8_E4M3),
    ("\"lu_factor_cusolver\" not implemented for 'Half'", OP, FLOAT16),
    ("\"fft\" not implemented for 'ComplexHalf'", OP, FLOAT16),
    (
        "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmStridedBatchedEx(handle, opa, opb, m, n, k, "
        "(void*)&falpha, a, CUDA_R_16BF, lda, stridea, b, CUDA_R_16BF, ldb, strideb, c, CUDA_R_16BF, ldc)`",
        OP,
        BFLOAT16,
    ),
    (
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k, &falpha, a, "
        "CUDA_R_16F, lda, b, CUDA_R_16F, ldb, &fbeta, c, CUDA_R_16F, ldc, CUDA_R_32F)`",
        OP,
        FLOAT16,
    ),
    ("CUDA error: HIPBLAS_STATUS_NOT_SUPPORTED when calling `hipblasGemmEx(handle, HIP_R_16BF)`", OP, BFLOAT16),
    ("rocblas_status_not_implemented for bf16_r gemm", OP, BFLOAT16),
    ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.", OP, None),
    ("Unable to find a valid cuDNN algorithm to run convolution", OP, None),
    ("GET was unable to find an engine to execute this computation", OP, None),
    ("linalg.eigh: Low precision dtypes not supported. Got Half", OP, FLOAT16),
    ("mkldnn_convolution: bf16 path needs the cpu support avx512bw, avx512vl and avx512dq", OP, BFLOAT16),
    ("quantile() input tensor must be either float or double dtype", OP, None),
    ("BFloat16 is not supported on MPS", OP, BFLOAT16),
    ("MPS BFloat16 is only supported on MacOS 14 or newer", OP, BFLOAT16),
    ("Tensor self not implemented for DT_BFLOAT16, should be in dtype support list [DT_FLOAT,DT_FLOAT16].", OP, BFLOAT16),
    ("Value for attr 'T' of bfloat16 is not in the list of allowed values: half, float, double", OP, BFLOAT16),
    ("Promotion for Float8 Types is not supported, attempted to promote Float8_e5m2 and Half", OP, FLOAT8_E4M3),
    ("Unsupported dtype Half", OP, FLOAT16),
    ("FlashAttention only support fp16 and bf16 data type", OP, None),
    (
        "Flash Attention 2 only supports torch.float16 and torch.bfloat16 dtypes, but the current dtype in "
        "LlamaForCausalLM is torch.float32.",
        OP,
        FLOAT32,
    ),
    ("FlashAttention only supports Ampere GPUs or newer.", ARCH, None),
    ("FlashAttention-3 only supports Hopper GPUs", ARCH, None),
    ("ptxas /tmp/x.ptx, line 84; error : Feature '.bf16' requires .target sm_80 or higher", ARCH, BFLOAT16),
    ("type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e4b15', 'fp8e5')", ARCH, FLOAT8_E4M3),
    ("CUBLAS_STATUS_ARCH_MISMATCH when calling cublasGemmEx with CUDA_R_16BF", ARCH, BFLOAT16),
    ("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9, or ROCm MI300+", ARCH, None),
    ("No available kernel. Aborting execution.", ARCH, None),
    (
        "No operator found for `memory_efficient_attention_forward` with inputs:\n     query : shape=(1, 577, 16, 64) "
        "(torch.bfloat16)\n`fa2F@v2.5.6` is not supported because:\n    requires device with capability > (8, 0)",
        ARCH,
        BFLOAT16,
    ),
    ("mat1 and mat2 must have the same dtype, but got Half and BFloat16", MISMATCH, BFLOAT16),
    ("expected m1 and m2 to have the same dtype, but got: c10::Half != float", MISMATCH, FLOAT16),
    ("expected scalar type Half but found BFloat16", MISMATCH, BFLOAT16),
    ("Input type (torch.cuda.FloatTensor) and weight type (torch.cuda.HalfTensor) should be the same", MISMATCH, FLOAT16),
    ("Input type (MPSBFloat16Type) and weight type (MPSHalfType) should be the same", MISMATCH, BFLOAT16),
    (
        "Expected object of scalar type Half but got scalar type Float for argument #2 'mat2' in call to _th_mm",
        MISMATCH,
        FLOAT16,
    ),
    (
        "Index put requires the source and destination dtypes match, got BFloat16 for the destination and Float for the "
        "source.",
        MISMATCH,
        BFLOAT16,
    ),
    ("Found dtype Half but expected Float", MISMATCH, FLOAT16),
    ("input must have the type torch.float16, got type torch.float32", MISMATCH, FLOAT16),  # an LSTM of torch 2.6
    ("result type Float can't be cast to the desired output type Half", MISMATCH, FLOAT16),
    ("Expected query and key to have the same dtype, got torch.bfloat16 and torch.float32", MISMATCH, BFLOAT16),
    ("Unexpected input data type. Actual: (tensor(float)) , expected: (tensor(float16))", MISMATCH, FLOAT16),
    ("probability tensor contains either `inf`, `nan` or element < 0", NONFINITE, None),
    ("Function 'MulBackward0' returned nan values in its 0th output.", NONFINITE, None),
    ("A tensor with all NaNs was produced in Unet.", NONFINITE, None),
    ("NaN or Inf found in input tensor.", NONFINITE, None),
    ("Loss is nan, stopping training", NONFINITE, None),
    ("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.", NONFINITE, None),
    ("value cannot be converted to type at::Half without overflow", NONFINITE, FLOAT16),
    (
        "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla V100 GPU has compute "
        "capability 7.0. You can use float16 instead by explicitly setting the `dtype` flag in CLI.",
        POLICY,
        BFLOAT16,
    ),
    ("Your setup doesn't support bf16/gpu. You need torch>=1.10, using Ampere GPU with cuda>=11.0", POLICY, BFLOAT16),
    ("fp16 mixed precision requires a GPU (not 'cpu').", POLICY, FLOAT16),
    (
        "FP16 Mixed precision training with AMP or APEX (`--fp16`) and FP16 half precision evaluation "
        "(`--fp16_full_eval`) can only be used on CUDA or MLU devices",
        POLICY,
        FLOAT16,
    ),
    (
        "Requested float16 compute type, but the target device or backend do not support efficient float16 computation.",
        POLICY,
        FLOAT16,
    ),
    ("torch.bfloat16 is not supported for quantization method gptq. Supported dtypes: [torch.float16]", POLICY, BFLOAT16),
    ("Got unsupported ScalarType BFloat16", POLICY, BFLOAT16),
    ("data type 'bfloat16' not understood", POLICY, BFLOAT16),
    ("Type bf16 is not supported.", POLICY, BFLOAT16),
    ("Attempting to unscale FP16 gradients.", POLICY, FLOAT16),
    ("Could not extract specialized integer from data-dependent expression u0 (unhinted: u0).", GRAPH, None),
    ("Exporting the operator 'aten::_fft_r2c' to ONNX opset version 17 is not supported.", GRAPH, None),
    (
        "[ONNXRuntimeError] : 1 : FAIL : Type Error: Type parameter (T) of Optype (Add) bound to different types "
        "(tensor(float) and tensor(float16) in node (Add_5).",
        GRAPH,
        FLOAT16,
    ),
    (
        "Dynamic control flow is not supported at the moment. Please use functorch.experimental.control_flow.cond",
        GRAPH,
        None,
    ),
]  # fmt: skip
NOT_OURS = [
    "CUDA out of memory. Tried to allocate 2.00 GiB for a bfloat16 tensor (GPU 0; 8.00 GiB total capacity)",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    "size mismatch for lm_head.weight: copying a param with shape torch.Size([32000, 4096]) from bfloat16 checkpoint",
    "expected scalar type Long but found Float",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (when checking "
    "argument for argument mat1 in method wrapper_CUDA_addmm)",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5), both BFloat16",
    "The size of tensor a (5) must match the size of tensor b (7) at non-singleton dimension 1",
    "Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same or input should be a "
    "MKLDNN tensor and weight is a dense tensor",
    "Input type (torch.cuda.HalfTensor) and weight type (torch.HalfTensor) should be the same",
    "\"host_softmax\" not implemented for 'Long'",
    "\"argmax_cpu\" not implemented for 'Bool'",
    "Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int; but got "
    "torch.HalfTensor instead (while checking arguments for embedding)",
    "Index put requires the source and destination dtypes match, got Long for the destination and Float for the source.",
    "mat1 and mat2 must have the same dtype, but got Long and Half",
    "Found dtype Long but expected Float",
    "input must have the type torch.float16, got type torch.int64",
    "result type Float can't be cast to the desired output type Long",
    "Could not infer dtype of NoneType",
    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.",
    "element 0 of tensors does not require grad and does not have a grad_fn",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: invalid configuration argument",
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "Assertion `t >= 0 && t < n_classes` failed. CUDA error: device-side assert triggered",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "Cannot copy out of meta tensor; no data!",
    "Unrecognized model in ./llama-bf16. Should have a `model_type` key in its config.json",
    "Tokenizer class BFloat16Tokenizer does not exist or is not currently imported.",
    "expected sequence of length 5 at dim 1 (got 7)",
    "index 50257 is out of bounds for dimension 0 with size 50257",
    "stack expects each tensor to be equal size, but got [3] at entry 0 and [4] at entry 1",
    "Trying to backward through the graph a second time",
    "Expected floating point type for target with class probabilities, got Long",
    "The following `model_kwargs` are not used by the model: ['bf16'] (note: typos in the generate arguments)",
    "NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled cuda error, bfloat16 all-reduce",
    "",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "dtype"), OURS, ids=lambda value: str(value)[:48])
def test_texts(text: str, kind: FailureKind, dtype: Dtype | None) -> None:
    """Each family is known by its text, with the dtype that failed, wherever in a longer message it stands."""
    for whole in (text, f"Error in model execution (input dumped to /tmp/x.pkl): {text}", f"RPC failed:\n  {text}\n"):
        failure = classify(RuntimeError(whole))
        assert failure is not None
        assert (failure.kind, failure.dtype, failure.message) == (kind, dtype, whole)
        assert not failure.sticky


@pytest.mark.parametrize("text", NOT_OURS, ids=lambda value: value[:48])
def test_others(text: str) -> None:
    """Memory, shapes, indices, devices, drivers, files and integers are let through, whatever dtype they name."""
    assert classify(RuntimeError(text)) is None


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]", (FLOAT16,)),
        ("Current CUDA Device does not support bfloat16. Please switch dtype to float16.", (FLOAT16,)),
        ("_weight_int4pack_mm_cpu : expect A to be float16 or bfloat16 tensor.", (FLOAT16, BFLOAT16)),
        ("DeepGEMM experts path requires bfloat16 hidden states, got torch.float16", (BFLOAT16,)),
        (
            "not implemented for DT_BFLOAT16, should be in dtype support list [DT_FLOAT,DT_FLOAT16].",
            (FLOAT32, FLOAT16),
        ),
        ("at::cuda::blas::gemm: not implemented for struct c10::BFloat16", ()),
    ],
    ids=lambda value: str(value)[:40],
)
def test_allowed(text: str, allowed: tuple[Dtype, ...]) -> None:
    """Dtypes that the text itself allows are read, and are not the one that failed."""
    failure = classify(RuntimeError(text))
    assert failure is not None
    assert failure.allowed == allowed
    assert failure.dtype not in allowed


@pytest.mark.parametrize(
    "text",
    [
        "Assertion `probability tensor contains either `inf`, `nan` or element < 0` failed. device-side assert triggered",
        "CUDA error: an illegal memory access was encountered in cublasGemmEx(CUDA_R_16BF)",
    ],
    ids=["multinomial", "gemm"],
)
def test_sticky(text: str) -> None:
    """What takes the device from the process is said to be sticky, where the dtype did it."""
    failure = classify(RuntimeError(text))
    assert failure is not None
    assert failure.sticky


OWN = "\"addmm_impl_cpu_\" not implemented for 'BFloat16'"


def raised(outer: BaseException, inner: BaseException, *, how: str) -> BaseException:
    """Return `outer`, raised in one of the ways that Python has while `inner` was handled."""
    try:
        try:
            raise inner
        except type(inner) as caught:
            if how == "from":
                raise outer from caught
            if how == "from-none":
                raise outer from None
            raise outer  # noqa: B904  (the context is what is tested)
    except type(outer) as caught:
        return caught


class InductorError(RuntimeError):
    """As torch names its wrapper."""


@pytest.mark.parametrize(
    ("outer", "inner", "how", "ours"),
    [
        pytest.param(RuntimeError("generation failed"), RuntimeError(OWN), "from", True, id="its-cause"),
        pytest.param(InductorError("at 1:0"), RuntimeError(OWN), "while", True, id="a-wrapper"),
        pytest.param(RuntimeError(""), RuntimeError(OWN), "while", True, id="says-nothing"),
        pytest.param(ValueError("bad argument"), RuntimeError(OWN), "while", False, id="another-matter"),
        pytest.param(RuntimeError(""), RuntimeError(OWN), "from-none", False, id="suppressed"),
        pytest.param(RuntimeError("failed"), RuntimeError("CUDA out of memory"), "from", False, id="memory-beneath"),
        pytest.param(RuntimeError("CUDA out of memory"), RuntimeError(OWN), "from", False, id="memory-above"),
        pytest.param(RuntimeError("failed"), KeyError("bfloat16"), "from", False, id="a-key-beneath"),
    ],
)  # fmt: skip
def test_chains(outer: BaseException, inner: BaseException, how: str, *, ours: bool) -> None:
    """Causes are followed, contexts only of wrappers that say nothing; a refusal anywhere refuses all."""
    failure = classify(raised(outer, inner, how=how))
    assert (failure is not None) == ours
    assert failure is None or failure.message == OWN


def test_a_circle() -> None:
    """Exceptions that cause each other end."""
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert classify(one) is None


class MuteError(RuntimeError):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "exc", [MuteError(), KeyboardInterrupt(OWN), SystemExit(OWN), GeneratorExit(OWN), StopIteration(OWN), OSError(OWN),
            SafeDtypeWarning(OWN)],
    ids=lambda exc: type(exc).__name__,
)  # fmt: skip
def test_odd_exceptions(exc: BaseException) -> None:
    """What ends a program or a loop, cannot be printed, is about a file, or is a warning, is none of ours."""
    assert classify(exc) is None


def test_every_kind_is_seen() -> None:
    """No kind is only a name."""
    assert {kind for _, kind, _ in OURS} == set(FailureKind)
