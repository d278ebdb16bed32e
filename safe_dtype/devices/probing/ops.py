"""The operations that are measured: one table, from a name to what builds one call and its exact result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from ...facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, INT4, INT8, Dtype
from ...kernels.row_product import MOST_ROWS, multiply_rows
from ...numerics.block_product import WIDTH, Blocks, product
from ...numerics.cast_products import cast_linear
from ...numerics.onednn_product import linear_by_onednn
from .accuracy import exactly, spread
from .attention_ops import attention, attention_chunks, attention_row
from .fewer_bits_ops import by_codes, by_narrow_weights
from .op_case import COMPARED, COMPARED_ROWS, Build, OpCase, Shape
from .verdicts import FEW_ROWS, PREFILL_ROWS
from .workspace import Workspace

_TRAINED_OUTPUTS = 512  # of a weight in a step of training: more have the same rate
_CDIST_POINTS = 16  # up to 25, torch.cdist takes a kernel of its own, beyond a product
_COMPILED_ROWS = (MOST_ROWS // 2, MOST_ROWS)  # that compiled products are timed at, beside one
_NO_SHAPE: Shape = (0, 0)


@dataclass(frozen=True, slots=True)
class Op:
    """How one operation is measured."""

    build: Build
    shapes: Callable[[Sequence[Shape]], Sequence[Shape]]  # the model's linear widths -> the shapes measured
    multiplies: bool = False  # work is flops, and float32 may be computed in a narrower format inside
    cut: int = 0  # outputs that give the same rate at many rows as all of them do; 0: always all
    rows: tuple[int, ...] = (FEW_ROWS, PREFILL_ROWS)  # timed beside one row
    odd_rows: tuple[int, ...] = ()  # checked, not timed
    inside: Dtype | None = None  # what is computed in, where that is narrower than the operands
    share: float = 1.0  # of the time for repeats that its precision is worth


def _all(widths: Sequence[Shape]) -> Sequence[Shape]:
    return widths


def _two(widths: Sequence[Shape]) -> Sequence[Shape]:
    return widths[:2]


def _first(widths: Sequence[Shape]) -> Sequence[Shape]:
    return widths[:1]


def _narrowed(widths: Sequence[Shape]) -> Sequence[Shape]:
    # A step of training is never at one row, where all of a weight must be read.
    return tuple(dict.fromkeys((min(out, _TRAINED_OUTPUTS), width) for out, width in widths))


def _none(_: Sequence[Shape]) -> Sequence[Shape]:
    return (_NO_SHAPE,)


def _matmul(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    # int8 on CUDA multiplies more than 16 rows only (torch/aten/src/ATen/native/cuda/Blas.cpp), so kernels pad.
    padded = max(rows, 32) if dtype == INT8 and space.device.type == "cuda" else rows
    x, weights = space.inputs(dtype, padded, shape[1]), space.weights(dtype, shape)
    product = _PRODUCTS.get(dtype, F.linear)

    def exact(y: Tensor) -> tuple[Tensor, Tensor]:
        lines, columns = spread(padded, COMPARED_ROWS), spread(shape[0], COMPARED)
        return y[lines, columns], exactly(x[lines]) @ exactly(weights[0][columns]).T

    return OpCase(
        call=lambda number: product(x, weights[number % len(weights)]),
        exact=exact,
        work=2.0 * rows * shape[0] * shape[1],
        bytes_read=float(shape[0] * shape[1] * dtype.itemsize),
    )


def _matmul_by(product: Callable[[Tensor, Tensor], Tensor]) -> Build:
    """Return what builds the same product of 16 or 32 bit, computed by `product`."""

    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        plain = _matmul(space, dtype, rows, shape)
        x, weights = space.inputs(dtype, rows, shape[1]), space.weights(dtype, shape)
        return replace(plain, call=lambda number: product(x, weights[number % len(weights)]))

    return build


def _cast_to(wide: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the product that is computed in `wide`: operands are cast on the way, the result is rounded."""
    return lambda x, weight: cast_linear(x, weight, None, wide).to(x.dtype)


def _by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """Return the product, computed in float32 by oneDNN, where torch has it.

    Raises:
        RuntimeError: If it has not.
    """
    product = linear_by_onednn(x, weight, None)
    if product is None:
        raise RuntimeError("torch has no products by oneDNN here")
    return product


def _blocks_in(wide: torch.dtype | None) -> Build:
    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        """The same product from a weight in blocks; many rows are computed in `wide`, None for the weight's dtype."""
        shape = (-(-shape[0] // WIDTH) * WIDTH, shape[1])
        x, weights = space.inputs(dtype, rows, shape[1]), space.weights(dtype, shape)
        blocks = [Blocks(one.view(-1, shape[1], WIDTH), shape[0]) for one in weights]
        outputs = torch.arange(shape[0], device=space.device)

        def exact(y: Tensor) -> tuple[Tensor, Tensor]:
            lines, columns = spread(rows, COMPARED_ROWS), spread(shape[0], COMPARED)
            return y[lines, columns], exactly(x[lines]) @ exactly(blocks[0].rows(outputs[columns])).T

        return OpCase(
            call=lambda number: product(x, blocks[number % len(blocks)], wide=wide or x.dtype),
            exact=exact,
            work=2.0 * rows * shape[0] * shape[1],
            bytes_read=float(shape[0] * shape[1] * dtype.itemsize),
        )

    return build


def _int8_product(x: Tensor, weight: Tensor) -> Tensor:
    return torch._int_mm(x, weight.t())


def _float8_product(x: Tensor, weight: Tensor) -> Tensor:
    if not hasattr(torch, "_scaled_mm"):
        return x @ weight.t()
    unit_scale = torch.ones((), dtype=torch.float32, device=x.device)
    return torch._scaled_mm(x, weight.t(), unit_scale, unit_scale, out_dtype=torch.bfloat16)


_PRODUCTS: dict[Dtype, Callable[[Tensor, Tensor], Tensor]] = {INT8: _int8_product, FLOAT8_E4M3: _float8_product}


def _rowwise(function: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> OpCase:
    """Build a case whose rows do not depend on each other."""

    def exact(y: Tensor) -> tuple[Tensor, Tensor]:
        rows = spread(len(x), COMPARED)
        return y[rows], function(exactly(x[rows]), *(exactly(one) for one in parameters))

    return OpCase(call=lambda _: function(x, *parameters), exact=exact, work=float(x.numel()))


def _layer_norm(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    weight, bias = space.inputs(dtype, 2, shape[1])
    return _rowwise(
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5), space.inputs(dtype, rows, shape[1]), weight, bias
    )


def _rms_norm(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    weight = space.inputs(dtype, shape[1])
    return _rowwise(lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), space.inputs(dtype, rows, shape[1]), weight)


def _softmax(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    return _rowwise(lambda x: F.softmax(x, -1), space.inputs(dtype, rows, shape[1]))


def _fft(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    return _rowwise(lambda x: torch.view_as_real(torch.fft.rfft(x)), space.inputs(dtype, rows, shape[1]))


def _cdist(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    points = space.weights(dtype, (_CDIST_POINTS, shape[1]))[0]
    return _rowwise(torch.cdist, space.inputs(dtype, rows, shape[1]), points)


def _embedding(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    table = space.weights(dtype, space.widest(dtype, shape))[0]
    ids = torch.arange(len(table), device="cpu")[spread(len(table), rows)][:rows]
    wanted = ids.to(space.device)

    def exact(y: Tensor) -> tuple[Tensor, Tensor]:
        return y, exactly(table.cpu()[ids])

    return OpCase(call=lambda _: F.embedding(wanted, table), exact=exact, work=float(rows * shape[1]))


# weight as a matrix -> (in_channels, kernel and stride, padding). The first two come out wrong under AMX in
# oneDNN 3.12: 37 of 704 shapes swept do, all with 8, 16 or 24 input channels.
_CONVOLUTIONS: dict[Shape, tuple[int, int, int, int]] = {
    (16, 16 * 4 * 4): (16, 4, 4, 0),
    (16, 16 * 8 * 8): (16, 8, 8, 0),
    (64, 64 * 3 * 3): (64, 3, 1, 1),
    (64, 3 * 16 * 16): (3, 16, 16, 0),
}
_PIXELS = {1: (1, 1), 16: (1, 4), 512: (2, 16)}  # rows -> (images, side of the result)


def _convolutions(_: Sequence[Shape]) -> Sequence[Shape]:
    return tuple(_CONVOLUTIONS)


def _conv2d(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    channels, kernel, stride, padding = _CONVOLUTIONS[shape]
    images, side = _PIXELS[rows]
    x = space.inputs(dtype, images, channels, side * stride, side * stride)
    weight = space.weights(dtype, shape)[0].view(shape[0], channels, kernel, kernel)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=stride, padding=padding)

    def exact(y: Tensor) -> tuple[Tensor, Tensor]:
        return y, convolve(exactly(x), exactly(weight))

    return OpCase(call=lambda _: convolve(x, weight), exact=exact, work=2.0 * rows * shape[0] * shape[1])


Trained = tuple[Tensor, Tensor, Tensor]  # the output of a layer, and the gradients of its input and of its weight


def trained_linear(product: Callable[[Tensor, Tensor], Tensor] = F.linear) -> Build:
    """Return what builds the product of a step of training: forward and backward, a float32 weight, under autocast."""

    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        x, weights = space.inputs(FLOAT32, rows, shape[1]), space.weights(FLOAT32, shape)
        gradient = space.inputs(dtype, rows, shape[0]).flip(0, 1)  # else it is a copy of the input, row by row

        def exact(trained: Trained) -> list[tuple[Tensor, Tensor]]:
            output, of_input, of_weight = trained
            lines, columns = spread(rows, COMPARED), spread(shape[0], COMPARED)
            weight, above = exactly(weights[0]), exactly(gradient)
            return [
                (output[lines, columns], exactly(x[lines]) @ weight[columns].T),
                (of_input[lines], above[lines] @ weight),
                (of_weight[columns], above[:, columns].T @ exactly(x)),
            ]

        return _training_case(space, dtype, product, (x, weights, gradient), exact)

    return build


def _train_conv2d(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    """A convolution in a step of training."""
    channels, kernel, stride, padding = _CONVOLUTIONS[shape]
    images, side = _PIXELS[rows]
    x = space.inputs(FLOAT32, images, channels, side * stride, side * stride)
    weights = space.weights(FLOAT32, shape)[:1].view(1, shape[0], channels, kernel, kernel)
    gradient = space.inputs(dtype, images, shape[0], side, side).flip(0, 1)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=stride, padding=padding)

    def exact(trained: Trained) -> list[tuple[Tensor, Tensor]]:
        operands = (exactly(x), exactly(weights[0]), exactly(gradient))
        return list(zip(trained, _train(convolve, *operands), strict=True))

    return _training_case(space, dtype, convolve, (x, weights, gradient), exact)


def _training_case(
    space: Workspace, dtype: Dtype, forward: Callable[[Tensor, Tensor], Tensor], operands: Trained,
    exact: Callable[[Trained], list[tuple[Tensor, Tensor]]],
) -> OpCase:  # fmt: skip
    """Build the case whose result is the gradient of the weight; output and gradient of the input are compared too."""
    x, weights, gradient = operands
    of_first: list[Trained] = []

    def call(number: int) -> Tensor:
        trained = _train(forward, x, weights[number % len(weights)], gradient, under=(space.device.type, dtype))
        if number == 0:
            of_first[:] = [trained]
        return trained[-1]

    def compared(_: Tensor) -> tuple[Tensor, Tensor]:
        parts = exact(of_first[0])
        # Each beside its own largest number: else the error of a small one goes under in a large one.
        scales = [right.abs().max().clamp(min=torch.finfo(torch.float64).tiny) for _, right in parts]
        mine = [exactly(part).flatten() / scale for (part, _), scale in zip(parts, scales, strict=True)]
        right = [part.flatten() / scale for (_, part), scale in zip(parts, scales, strict=True)]
        return torch.cat(mine).nan_to_num(nan=torch.inf), torch.cat(right)

    return OpCase(call=call, exact=compared, work=6.0 * gradient.numel() * weights[0, 0].numel())


def _train(
    forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, gradient: Tensor,
    under: tuple[str, Dtype] | None = None,
) -> Trained:  # fmt: skip
    """Go forward and back; `under`: the type of the device and the dtype of an autocast, where there is one.

    Raises:
        RuntimeError: If autocast is not there for this dtype, or leaves the product in another.
    """
    wanted = None if under is None or under[1] == FLOAT32 else getattr(torch, under[1].name)
    if wanted not in (None, torch.bfloat16, torch.float16):  # torch would warn, and leave autocast off
        raise RuntimeError(f"there is no autocast to {wanted}")
    autocast = nullcontext() if under is None or wanted is None else torch.autocast(under[0], wanted)
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.enable_grad():
        with autocast:
            output = forward(x, weight)
        if wanted not in (None, output.dtype):
            raise RuntimeError(f"autocast to {wanted} leaves products in {output.dtype}")
        of_input, of_weight = torch.autograd.grad(output, (x, weight), gradient)
    return output.detach(), of_input, of_weight


# 512 x 128 outputs run at the rate of 512 x 3072, within 15 % in float32 and 5 % in bf16 and fp16 (AVX2, 2 cores).
OPS: dict[str, Op] = {
    "matmul": Op(_matmul, _all, multiplies=True, cut=128, odd_rows=(17,)),
    "attention": Op(attention, _none, multiplies=True, odd_rows=(17,), share=0.5),
    "matmul_cast": Op(_matmul_by(_cast_to(torch.float32)), _two, multiplies=True, cut=1024, share=0.5),
    "matmul_onednn": Op(_matmul_by(_by_onednn), _first, multiplies=True, cut=1024, odd_rows=(17,), share=0.5),
    "matmul_cast_onednn": Op(_matmul_by(_by_onednn), _first, multiplies=True, cut=1024, odd_rows=(17,), share=0.5),
    "attention_chunks": Op(attention_chunks, _none, multiplies=True, odd_rows=(300,), share=0.5),
    "attention_row": Op(attention_row, _none, multiplies=True, rows=(), share=0.5),
    "matmul_narrow": Op(
        _matmul_by(_cast_to(torch.bfloat16)), _two, multiplies=True, cut=1024, inside=BFLOAT16, share=0.5
    ),
    "matmul_blocks": Op(_blocks_in(None), _two, multiplies=True, cut=512, share=0.5),
    "matmul_blocks_cast": Op(_blocks_in(torch.float32), _two, multiplies=True, cut=1024, odd_rows=(17,), share=0.5),
    "matmul_rows": Op(
        _matmul_by(multiply_rows), _all, multiplies=True, cut=4096, rows=_COMPILED_ROWS, odd_rows=(3,), share=0.5
    ),
    "matmul_int8": Op(by_codes(INT8, None), _two, multiplies=True, cut=1024, odd_rows=(3,), share=0.5),
    "matmul_int8_cast": Op(by_codes(INT8, torch.float32), _two, multiplies=True, cut=1024, odd_rows=(3,), share=0.5),
    "matmul_int4": Op(by_codes(INT4, None), _two, multiplies=True, cut=1024, odd_rows=(3,), share=0.5),
    "matmul_int4_cast": Op(by_codes(INT4, torch.float32), _two, multiplies=True, cut=1024, odd_rows=(3,), share=0.5),
    "matmul_bfloat16_rows": Op(by_narrow_weights(BFLOAT16), _two, multiplies=True, cut=1024, odd_rows=(3,), share=0.5),
    "matmul_float16_rows": Op(by_narrow_weights(FLOAT16), _two, multiplies=True, cut=1024, odd_rows=(3,), share=0.5),
    "layer_norm": Op(_layer_norm, _first, share=0.1),
    "rms_norm": Op(_rms_norm, _first, share=0.02),
    "softmax": Op(_softmax, _first, share=0.02),
    "conv2d": Op(_conv2d, _convolutions, multiplies=True),
    "embedding": Op(_embedding, _first, share=0.1),
    "fft": Op(_fft, _first, share=0.1),
    "cdist": Op(_cdist, _first, share=0.1),
    "matmul_training": Op(trained_linear(), _narrowed, multiplies=True, odd_rows=(17,)),
    "conv2d_training": Op(_train_conv2d, _convolutions, multiplies=True),
}
