"""What was found out about a device and a checkpoint. Nouns only: nothing here measures, reads or decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from ..rendering.units import size_text
from .coding import CODES, Coding, codes_of_head, coding_for, plainly
from .dtypes import BFLOAT16, FLOAT32, Dtype
from .learned_failure import LearnedFailure
from .rescale import Rescale

_16_BIT_ROWS = ("_bfloat16_rows", "_float16_rows")  # operations that read float32 weights as they are held in 16 bit
BESIDE_FLOAT32 = "x float32's time at"  # marks the part of a verdict's reason that compares the speed of the operation


class VerdictKind(str, Enum):
    """How a dtype does on a device for one family of operations."""

    NATIVE = "native"  # right, and at least about as fast as float32
    SLOW = "slow"  # right, but more than 1.5 times float32's time
    WRONG = "wrong"  # runs, and the numbers are off by more than the format's own rounding
    UNSUPPORTED = "unsupported"  # raises
    CRASHES = "crashes"  # ends the process, or never returns
    UNKNOWN = "unknown"  # nobody measured it

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Timing:
    """One measured cell: an operation on `rows` rows with a weight of shape (out, in)."""

    rows: int
    shape: tuple[int, int]  # (out_features, in_features) of the weight; (0, 0) where there is none
    seconds: float  # median of the three fastest repeats


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one dtype does for one op family on one device, compared with float32 on random data.

    `decode_bytes_per_s` is the rate at which weights are read at one row (one token), `prefill_flops_per_s` the
    rate of arithmetic at 512 rows; either is None where it was not measured.
    """

    dtype: Dtype
    op: str  # "matmul", "attention", ...: the names in `devices.probing.ops.OPS`
    kind: VerdictKind
    reason: str
    decode_bytes_per_s: float | None = None
    prefill_flops_per_s: float | None = None
    max_rel_error: float | None = None  # largest |difference| over largest |reference|
    timings: tuple[Timing, ...] = ()

    @property
    def bytes_each(self) -> float:
        """Bytes of one number of a weight, as this operation reads it; of codes without their scales."""
        if self.op.endswith(_16_BIT_ROWS):
            return BFLOAT16.itemsize
        codes = next((one for one in CODES if self.op.startswith(f"matmul_{one}")), None)
        return plainly(codes).bits / 8 if codes else self.dtype.itemsize

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reason says beside the speed of this one operation."""
        return tuple(note for note in self.reason.split("; ") if note and BESIDE_FLOAT32 not in note)

    @property
    def runs(self) -> bool:
        """Whether the operation finishes with right numbers, fast or slow."""
        return self.kind in (VerdictKind.NATIVE, VerdictKind.SLOW)


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Bytes on one device, after every limit (cgroup, `max_memory`) has been applied. All zero: nobody knows."""

    total_bytes: int
    free_bytes: int
    # "device", "cgroup", "max_memory", "device_map" (where the caller places a model), "the caller" (who moves all of it to
    # one device), "ranks"
    limited_by: str

    def has_room_for(self, needed_bytes: float) -> bool:
        """Whether so many bytes are free. Where nobody knows, they are taken to be."""
        return not self.total_bytes or needed_bytes <= self.free_bytes

    def __add__(self, other: MemoryFacts) -> MemoryFacts:
        """Return both together: unknown where one of them is, limited by what limits the first."""
        if not (self.total_bytes and other.total_bytes):
            return MemoryFacts(0, 0, self.limited_by)
        return MemoryFacts(self.total_bytes + other.total_bytes, self.free_bytes + other.free_bytes, self.limited_by)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a library says about a device without measuring, beside our verdict."""

    question: str  # as a user types it: "torch.cuda.is_bf16_supported()"
    answer: str
    disagreement: str = ""  # empty where the measurement agrees


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device: what it is, and what it was measured to do."""

    device: str  # torch's name: "cpu", "cuda:0"
    name: str  # the product: "NVIDIA A100-SXM4-80GB", "AMD EPYC"
    memory: MemoryFacts
    verdicts: tuple[Verdict, ...] = ()
    vendor: str = ""  # "nvidia", "amd", "intel_gpu", "apple", "cpu", "npu", ...
    capability: str = ""  # "8.0", "gfx1030", "M3", or the CPU flags that matter
    driver: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()  # environment and thread counts that change kernels
    claims: tuple[Claim, ...] = ()
    family: str = ""  # the row of the prior table that matched
    prior_order: tuple[Dtype, ...] = ()  # the prior table's order of trying, best first
    products: tuple[str, ...] = ()  # the names of several devices that are taken as one; empty: `name` is the only one
    measured: bool = True  # False: the verdicts come from the prior table, nobody measured here
    published: tuple[tuple[Dtype, float], ...] = ()  # peak arithmetic over float32's, by the maker, where not measured

    @property
    def is_of_main_memory(self) -> bool:
        """Whether it computes in the machine's main memory, of which there is one: a CPU, a Mac."""
        return self.vendor in ("cpu", "apple")

    def verdict(self, dtype: Dtype, op: str = "matmul") -> Verdict:
        """Return the verdict on `dtype` for `op`; UNKNOWN where there is none."""
        for verdict in self.verdicts:
            if verdict.dtype == dtype and verdict.op == op:
                return verdict
        return Verdict(dtype, op, VerdictKind.UNKNOWN, "not measured")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor of a checkpoint, as its header describes it."""

    name: str
    dtype: str  # torch's name, also for formats we do not choose ("int32", "float8_e5m2")
    shape: tuple[int, ...]
    file: str
    largest: float | None = None  # |number|, of what the format of most tensors may not hold; None: nobody looked

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True, slots=True)
class LinearFacts:
    """All the weights of one shape that multiply activations."""

    out_features: int
    in_features: int
    count: int
    active: float = 1.0  # the share a token passes through: experts per token / experts in a mixture
    per_position: bool = True  # False for the output head: generation asks only for the last position

    @property
    def numel(self) -> int:
        """Number of elements in all of them."""
        return self.out_features * self.in_features * self.count

    def coding(self, codes: Dtype) -> Coding | None:
        """Return how they are held where linear weights are rounded to `codes`; None: they stay as they are."""
        codes = codes if self.per_position else codes_of_head(codes)
        return coding_for(codes, self.out_features, self.in_features)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token adds to the KV cache. All zeros where the architecture has none."""

    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    attention_heads: int = 0

    @property
    def numel_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a candidate's outputs lie from those of its reference on the same inputs.

    The figures are those of the main output: the logits, or where there are none the last hidden state, or the first of
    all. Those of every other output (boxes, masks, depths, values, audio) stand in `heads`.
    """

    kind: str  # "tokens" (language models), "classes", "labels" (several at once), "pixels", "values" (anything else)
    positions: int  # how many tokens, items, labels, pixels or rows were compared; 0: the candidate lacks this output
    kl_mean: float  # KL(reference || candidate) in nats, the mean over positions
    kl_p99: float  # ... that 99 % of the positions do not exceed
    top1_agreement: float  # share of the positions whose largest logit is the same
    max_abs: float  # largest |difference| of two logits
    rel_rms: float  # RMS of the differences over the RMS of the reference
    perplexity_ratio: float | None = None  # the candidate's perplexity over the reference's, on the text itself
    hidden_cosine: float | None = None  # cosine between the last hidden states, the mean over positions
    miou: float | None = None  # mean intersection over union of the predicted classes, reference as truth
    heads: tuple[tuple[str, Drift], ...] = ()  # the other outputs, by name
    # Beside the figures, not among them: a drift in a file from before is equal to the same drift without these two.
    reference_nats: float | None = field(default=None, compare=False)  # KL(reference || uniform): how much it says
    clear_flips: float | None = field(default=None, compare=False)  # share of other first choices, beyond rounding

    def _repr_html_(self) -> str:
        from .drift_page import drift_html  # which is about this noun

        return drift_html(self)


@dataclass(frozen=True, slots=True)
class MeasuredDrift:
    """The drift of one way to run a checkpoint on one device, or why it could not be measured."""

    storage: Dtype
    compute: Dtype
    drift: Drift | None
    problem: str = ""
    codes: Dtype | None = None  # what linear weights were held in


@dataclass(frozen=True, slots=True)
class BlockPeak:
    """The largest |number| in what one block of a model returns."""

    block: str  # as in `named_modules()`
    plain: float  # as the checkpoint is
    rescaled: float  # with the rescale


@dataclass(frozen=True, slots=True)
class HalfRange:
    """What it takes to run a checkpoint in float16, measured on a text, or without a tokenizer on random tokens.

    Activations are those that float16 would have to hold: what a norm computes in float32 does not count.
    """

    peak: float  # largest |activation| of the checkpoint as it is
    left: float  # ... after the rescale, outside the islands; what is known for every input (an embedding) apart
    block_peaks: tuple[BlockPeak, ...] = ()
    rescale: Rescale | None = None  # the exact rescaling that brings them into range; None: none is needed, or known
    islands: tuple[str, ...] = ()  # modules that stay in float32, names as in `named_modules()`
    on_noise: bool = False  # on random tokens: a trained model has never seen such, and its peaks may lie elsewhere
    unseen: tuple[str, ...] = ()  # modules that a text does not reach (an image tower): nothing is known of them
    problem: str = ""  # why float16 is rejected all the same
    drift: Drift | None = None  # of float16 with all of that, on the device that is planned for
    certified: float | None = None  # no hidden state goes beyond this, whatever the input; None: nobody knows
    reference: Dtype = FLOAT32  # what the drift is measured from: the checkpoint in this dtype, computed in float32
    stored: bool = False  # read from beside the weights, where all of it was measured before: no figure is known here
    measured_on: str = ""  # the name of another device, where it was not measured on the one that is planned for
    recipe: str = ""  # the repository and commit of the recipe that all of it was read from; it is proved at the load
    kl: tuple[float, ...] = field(default=(), compare=False)  # nats at each position, the first 512 at most

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        noise = ", on random tokens" if self.on_noise else ""
        if self.rescale is None and not self.islands:
            return f"activations reach {size_text(self.peak)}{noise}"
        words = [f"rescaled exactly: {self.rescale}"] if self.rescale else []
        words += [f"{len(self.islands)} module{'s' * (len(self.islands) != 1)} in float32"] if self.islands else []
        if self.stored:
            return f"{', '.join(words)}, as it was saved"
        if self.recipe:
            return f"{', '.join(words)}, by a recipe of {self.recipe}, which the load proves"
        sure = f" (for any input, hidden states stay below {size_text(self.certified)})" if self.certified else ""
        return f"{', '.join(words)}; activations reach {size_text(self.left)} instead of {size_text(self.peak)}{noise}{sure}"


@dataclass(frozen=True, slots=True)
class CheckpointIdentity:
    """What tells a checkpoint from others, wherever a copy of it lies. None: unknown."""

    tensors: str  # a digest of names, dtypes and shapes
    contents: str | None = None  # a digest of sizes and samples of the files; None where they are not on this machine
    blobs: str | None = None  # a digest of the Hub's digests of the files; None of local files
    commit: str | None = None  # of a repository on the Hub


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What the files of a checkpoint really hold. `config_dtype` is only what config.json claims."""

    source: str  # as the user wrote it
    files: tuple[str, ...]
    file_format: str  # "safetensors", "pytorch", "gguf", "state_dict"; "dequantized": see `as_loaded`
    tensors: tuple[TensorFacts, ...]
    saved: Dtype  # the floating format that holds most bytes
    config_dtype: str | None = None
    architecture: str | None = None  # config.architectures[0]
    model_type: str | None = None
    linears: tuple[LinearFacts, ...] = ()
    cache: CacheShape = CacheShape()
    takes: str = "tokens"  # "tokens", "images", "audio", or "inputs": of several kinds, or of one of its own
    vocab_size: int = 0
    hidden_size: int = 0
    tied: bool = False  # tie_word_embeddings
    has_conv2d: bool = False
    keep_in_fp32: tuple[str, ...] = ()  # patterns kept in float32 under float16
    keep_in_fp32_strict: tuple[str, ...] = ()  # ... under float16 and bfloat16
    quantization: str | None = None  # quantization_config's quant_method
    packed_bits: int | None = None  # of a code, where quantization_config names them
    code_format: str | None = None  # of GPTQ and AWQ codes, where quantization_config names one: "marlin", "gemv"
    is_to_dequantize: bool = False  # quantization_config says so, whatever the device
    loaded_as: Dtype | None = None  # what a quantized checkpoint comes out in unless ordered otherwise; None: `saved`
    has_own_code: bool = False  # its config names code that comes with it, which runs where it is trusted
    adapter: str | None = None  # the adapter's folder or repository, where `source` is one; facts are the base's
    revision: str | None = None  # as asked for
    identity: CheckpointIdentity | None = None  # of the files; None for weights in memory
    versions: tuple[tuple[str, str], ...] = ()  # of the libraries that read it: their lists are among these facts
    # BFLOAT16 or FLOAT16, where that has every number that was looked at of a float32 checkpoint's matrices: it was cast up
    narrower: Dtype | None = None
    half: HalfRange | None = None  # None: nobody looked
    drifts: tuple[MeasuredDrift, ...] = ()  # against float32, on the device that is planned for
    warnings: tuple[str, ...] = ()
    lessons: tuple[LearnedFailure, ...] = ()  # what guarded runs of it have met on the device that is planned for

    @property
    def parameters(self) -> int:
        """Number of elements in all tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def takes_tokens(self) -> bool:
        """Whether it reads or writes tokens; else images or sound, whose rows nobody makes fewer by a shorter prompt."""
        return self.takes == "tokens"

    def drift(self, storage: Dtype, compute: Dtype, codes: Dtype | None = None) -> MeasuredDrift | None:
        """Return what was measured of this way to run it; None where nobody looked."""
        wanted = (storage, compute, codes)
        return next((one for one in self.drifts if (one.storage, one.compute, one.codes) == wanted), None)

    def widths(self) -> Iterator[tuple[int, int]]:
        """Yield (out_features, in_features) of the linear weights, those that hold most elements first."""
        for linear in sorted(self.linears, key=lambda one: -one.numel):
            yield linear.out_features, linear.in_features
