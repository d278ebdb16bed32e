"""Bring the weights of a loaded model into the layout that was planned, and its products to the kernels."""

from __future__ import annotations

import torch
from torch import nn

from ..facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from ..kernels import column_product
from ..kernels.row_product import MOST_ROWS
from ..numerics import compute_in
from ..numerics.by_onednn import by_onednn
from ..planning import Candidate, Routes
from ..planning.matmul_routes import NARROW, ROUNDED
from .block_layout import lay_out, lay_out_in_codes, lay_out_narrow
from .forwards.compiled_products import CompiledProducts, compile_products
from .forwards.conv1d_forward import compile_columns
from .forwards.experts_forward import CompiledExperts, compile_experts
from .forwards.gated_forward import CompiledGate, compile_gates
from .forwards.layer_forward import CompiledLayer, compile_layers
from .forwards.module_forward import take_off, value_of
from .forwards.norm_forward import CompiledNorm, compile_norms
from .forwards.rotary_forward import CompiledRotation, compile_rotations

_COMPILED = (CompiledExperts, CompiledGate, CompiledLayer, CompiledNorm, CompiledProducts, CompiledRotation)


def lay_out_as_planned(model: nn.Module, candidate: Candidate, routes: Routes | None) -> int | None:
    """Return how many modules were laid out, of those whose weights are views of their files; None: it is not planned."""
    if routes is None or routes.layout == "plain" or routes.wide is None:
        return None
    if routes.layout in (NARROW, ROUNDED) and candidate.codes is not None:
        dtype = getattr(torch, candidate.codes.name)
        return lay_out_narrow(model, dtype, rounds=routes.layout == ROUNDED).modules
    if candidate.codes is not None:
        return lay_out_in_codes(model, candidate.codes, wide=getattr(torch, routes.wide.name)).modules
    rounded = getattr(torch, candidate.compute.name) if candidate.storage == FLOAT32 else None
    return lay_out(model, rounded=rounded, wide=getattr(torch, routes.wide.name)).modules


def compile_as_planned(model: nn.Module, candidate: Candidate, routes: Routes | None) -> int:
    """Return in how many modules products of few rows are compiled now, also by experts; 0 where it is not planned.

    In 16 bit, norms and rotary embeddings are compiled as well, whatever the products are, and steps of few rows are
    computed layer by layer. Products by codes, or by 16-bit weights of a float32 model, are compiled where these are laid out.
    """
    if routes is None:
        return 0
    dtype = getattr(torch, candidate.storage.name)
    is_half = candidate.storage in (BFLOAT16, FLOAT16)
    if is_half:
        compile_norms(model, dtype)
        compile_rotations(model, dtype)
    count = 0
    if routes.compiled_rows:
        count = compile_products(model, dtype, routes.compiled_rows)
        count += compile_columns(model, dtype, column_product.MOST_ROWS)
        # Of few tokens an expert has one or two, whatever a linear module has.
        count += compile_experts(model, dtype, MOST_ROWS)
    if count or candidate.codes is not None:
        compile_gates(model)
    if is_half:
        compile_layers(model, MOST_ROWS)
    return count


def take_compiled_off(model: nn.Module) -> int:
    """Have the modules of a model compute by the forwards of their classes, but for those in blocks; return how many."""
    return sum(take_off(module) for module in model.modules() if isinstance(value_of(module), _COMPILED))


def planned_products(compute: Dtype, routes: Routes | None, least: int) -> compute_in:
    """Return the context in which products of at least so many rows are computed as planned."""

    def are_many(_family: str, rows: int) -> bool:
        return rows >= least

    return by_onednn(when=are_many) if routes is not None and routes.onednn else compute_in(compute, when=are_many)
