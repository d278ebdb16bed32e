"""Failure texts that no pattern was written for: of kernels, compilers and backends that may come, in several languages."""

from __future__ import annotations

from typing import Any


class KernelTrap(Exception):  # noqa: N818  (as a backend may call it)
    """An exception of a backend that nobody knows, and of no class that torch has."""


class DtypeNotWired(TypeError):  # noqa: N818
    """One with arguments that are no text."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class MuteError(RuntimeError):
    """One that cannot be printed."""

    def __str__(self) -> str:
        raise ValueError("no text")


def chained(outer: Exception, inner: Exception) -> Exception:
    """Return `outer` with a cause."""
    outer.__cause__ = inner
    return outer


# Raised in 16 bit alone: another dtype cures them.
CURABLE: list[Exception] = [
    RuntimeError("gemm_lowp: opcode 0x3F has no encoding on NPU-B1"),
    RuntimeError("TensixCore: tile format 5 rejected by the packer"),
    RuntimeError("vkCmdDispatch: storageBuffer16BitAccess was not enabled at device creation"),
    RuntimeError("MTLCompilerService: function constant 'SIMD_WIDTH' has no specialisation"),
    RuntimeError("ISA check failed (want avx512_fp16, have avx2)"),
    RuntimeError("primitive_desc_create returned status 3"),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a primitive descriptor for an inner product forward propagation primitive"),
    RuntimeError("ideep error code -5"),
    RuntimeError("op lookup miss: (matmul, dt=27)"),
    RuntimeError("Ascend: EZ9999 inner error, TBE kernel compile failed, soc_version 310"),
    RuntimeError("AICPU op [MatMulV3] task exec abnormal"),
    RuntimeError("synStatus 26 [Generic failure] in node gelu_fwd"),
    RuntimeError("hpu: graph compile failed, recipe is null"),
    RuntimeError("Cambricon cnnlOpStatus 14"),
    RuntimeError("[xpu] SPIR-V module needs capability Float16Buffer"),
    RuntimeError("Level Zero: ZE_RESULT_ERROR_MODULE_BUILD_FAILURE"),
    RuntimeError("LLVM ERROR: Cannot select: t13: v8bf16 = fma t10, t11, t12"),
    RuntimeError("error: operand type mismatch for `vdpbf16ps'"),
    RuntimeError("PassManager::run failed"),
    RuntimeError("Assertion `isa<FloatType>(ty)' failed."),
    RuntimeError("no tuned config, key=(128, 128, 32, 2)"),
    RuntimeError("tl.dot: lhs type is bf16"),
    RuntimeError("wmma fragment layout is undefined here"),
    RuntimeError("kernel table has a hole at [7][15]"),
    RuntimeError("dispatcher fell through"),
    RuntimeError("unexpected scalar kind 15"),
    RuntimeError("unreachable"),
    RuntimeError("Sorry, this build ships only the single precision path."),
    RuntimeError("wide accumulators wanted"),
    RuntimeError("CPU op for sixteen-bit floats pending, see ticket 811"),
    RuntimeError("narrow element types: come back later"),
    RuntimeError("reduced precision is off by administrator"),
    RuntimeError("rms_norm: vec4 loads need a 4 byte type"),
    RuntimeError("quack quack"),
    RuntimeError("."),
    RuntimeError(""),
    RuntimeError(),
    RuntimeError(-7),
    RuntimeError("算子不支持该数据类型"),
    RuntimeError("当前设备没有实现此内核,请改用单精度"),
    RuntimeError("昇腾:算子编译失败,错误码 500002"),
    RuntimeError("le noyau n'existe pas pour ce type de nombres"),
    RuntimeError("opération indisponible en demi-précision sur cet appareil"),
    RuntimeError("Dieser Kernel kennt den Datentyp nicht"),
    RuntimeError("Für halbe Genauigkeit fehlt die Routine"),
    RuntimeError("この型のカーネルはありません"),
    RuntimeError("지원되지 않는 자료형"),
    RuntimeError("ядро для этого типа не собрано"),
    RuntimeError("núcleo ausente para o tipo pedido"),
    RuntimeError("تعذر تشغيل النواة"),
    NotImplementedError("lowp"),
    NotImplementedError(""),
    NotImplementedError("todo(kernel team): 16b path"),
    NotImplementedError("fused_moe: this expert layout"),
    TypeError("unhashable: 'dtype'"),
    TypeError("sequence item 0: expected str instance, dtype found"),
    TypeError("bad operand type for unary ~"),
    TypeError("ufunc 'rsqrt' did not contain a loop with signature matching types"),
    TypeError("Got unsupported element kind"),
    TypeError("'NoneType' object is not callable"),
    TypeError("forward_lowp() got an unexpected keyword argument 'scale'"),
    ValueError("invalid literal for element width: '16'"),
    ValueError("2 is not a valid ElementSize"),
    ValueError("'bf16' is not among ['f32', 'f64']"),
    ValueError("pick another precision"),
    ValueError(""),
    ValueError("K must be divisible by 16 in this format"),
    AssertionError(),
    AssertionError("want 4-byte lanes"),
    AssertionError("x.element_size() == 4"),
    AssertionError("autotuner produced nothing"),
    KeyError("bfloat16"),
    KeyError(15),
    KeyError(("gemm", 2)),
    LookupError("no such routine"),
    IndexError("kernel list"),
    AttributeError("module 'fastops' has no attribute 'rms_norm_h'"),
    ImportError("fastops was built for float only, pip install fastops-half"),
    OSError("libfastops_half.so: undefined symbol: rms_h"),
    ArithmeticError("mantissa of 8 bits"),
    OverflowError("cannot fit"),
    ZeroDivisionError("division by zero"),
    UnicodeError("odd"),
    EOFError("stream of microcode ended"),
    SystemError("returned a result with an exception set"),
    BufferError("item size 2"),
    LookupError("dtype registry"),
    KernelTrap("trap 4"),
    KernelTrap(),
    DtypeNotWired(15),
    MuteError(),
    chained(RuntimeError("layer failed"), KeyError("bf16")),
    chained(RuntimeError("plugin stopped"), ValueError("two-byte floats")),
    chained(KernelTrap(""), RuntimeError("queue 3: opcode")),
    chained(NotImplementedError(), TypeError("dtype")),
    # Patterns know these as no matter of dtypes, as a rule; raised in 16 bit alone they are one.
    RuntimeError("Torch not compiled with lowp enabled"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx(...)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR"),
    RuntimeError("\"index_select_out\" not implemented for 'Float8_e4m3fn'"),
    # And patterns know these.
    RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'"),
    RuntimeError("expected scalar type Float but found BFloat16"),
    RuntimeError("FlashAttention only supports Ampere GPUs or newer."),
    RuntimeError("absmax must be float32, got torch.bfloat16"),
]

# Raised in every dtype.
INCURABLE: list[Exception] = [
    RuntimeError("\"rshift_cpu\" not implemented for 'Half'"),
    RuntimeError("\"rshift_cpu\" not implemented for 'BFloat16'"),
    RuntimeError("\"bitwise_and_cpu\" not implemented for 'Half'"),
    RuntimeError("absmax must be float32, got torch.bfloat16"),
    RuntimeError("Input type (MPSFloatType) and weight type (torch.FloatTensor) should be the same"),
    RuntimeError("Input type (MPSBFloat16Type) and weight type (MPSHalfType) should be the same"),
    RuntimeError("expected scalar type Half but found BFloat16"),
    RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16"),
    RuntimeError("FlashAttention only supports Ampere GPUs or newer."),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(CUDA_R_16BF)`"),
    RuntimeError("Got unsupported ScalarType BFloat16"),
    RuntimeError("torch.bfloat16 is not supported for quantization method gptq. Supported dtypes: [torch.float16]"),
    RuntimeError("Could not guard on data-dependent expression Eq(u0, 1)"),
    RuntimeError("NaN or Inf found in input tensor."),
    RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'"),
    RuntimeError("linalg.eigh: Low precision dtypes not supported. Got Half"),
    RuntimeError("my cache is empty"),
    RuntimeError("quack quack"),
    RuntimeError(""),
    RuntimeError("当前设备没有实现此内核"),
    RuntimeError("le noyau n'existe pas"),
    NotImplementedError("forward"),
    NotImplementedError(),
    TypeError("forward() missing 1 required positional argument: 'position'"),
    TypeError("'NoneType' object is not subscriptable"),
    ValueError("the batch is empty"),
    ValueError("bfloat16 or float16, pick one"),
    ValueError("You have to specify either input_ids or inputs_embeds"),
    ValueError(),
    AssertionError(),
    AssertionError("x.dim() == 3"),
    KeyError("hidden_states"),
    KeyError("bfloat16"),
    AttributeError("'Qwen3MLP' object has no attribute 'gate'"),
    NameError("name 'rotary' is not defined"),
    ImportError("cannot import name 'fused'"),
    OSError("weights are on a disk that is gone"),
    IndexError("list index out of range"),
    ZeroDivisionError("division by zero"),
    KernelTrap("trap 4"),
    KernelTrap(),
    DtypeNotWired(15),
    MuteError(),
    chained(RuntimeError("layer failed"), KeyError("bf16")),
    chained(ValueError("bad config"), RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'")),
]


# Raised in 16 bit alone, and let through at once: about memory, shapes, indices, devices, files, communication; or the
# caller's way out of a forward.
class StopForward(Exception):  # noqa: N818
    """How a caller ends a forward that has gone far enough."""


VETOED: list[Any] = [
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("The size of tensor a (5) must match the size of tensor b (7) at non-singleton dimension 1"),
    IndexError("index 7 is out of bounds for dimension 0 with size 7"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled system error"),
    FileNotFoundError(2, "No such file or directory", "adapter.safetensors"),
    ConnectionResetError(104, "Connection reset by peer"),
    TimeoutError("the other rank"),
    StopIteration(),
    StopForward(),
    RuntimeWarning("made an error by a filter"),
    RecursionError("maximum recursion depth exceeded"),
    chained(RuntimeError("layer failed"), RuntimeError("HIP out of memory")),
]
