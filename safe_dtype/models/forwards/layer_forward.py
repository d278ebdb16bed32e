"""Have decoder layers compute few rows without the calls of their modules, those whose forwards most models have.

A layer of a Qwen3 is 19 calls of modules, and of each it is asked who looks on and whether its weight is what it was. Where a
step is of few rows these calls take as long as a fifth of its products. So one function makes them for the layer: it asks
once who looks on, and computes by the same kernels as the modules. Whatever is not as it was when the layer was known,
a module with a hook, of another class or with another weight, is called as ever.

Functions that compute what a module would name it `self`, as its methods do: in the frames of an exception, the module
that was running is found by that name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...facts.cache_names import cache_parameter
from ...kernels.row_product import Weighed, multiply_rows, multiply_rows_by_each
from . import known_forwards
from .compiled_products import weighed
from .gated_forward import gated
from .known_code import KnownCode, digest_of, is_known
from .module_forward import put_on, value_of
from .norm_forward import normalized
from .plain_calls import has_global_hook, has_hook, is_plain, is_watched
from .rotary_forward import HALF, TURN, is_replaced, turned
from .unwrapped import old_names, unwrapped, without_old_names

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
ATTENTION, MLP, INPUT_NORM, INNER_NORM = "self_attn", "mlp", "input_layernorm", "post_attention_layernorm"
LAST, LAST_OF_MLP = "o_proj", "down_proj"
_OF_LAYER, _OF_MLP = frozenset({ATTENTION, MLP, INPUT_NORM, INNER_NORM}), frozenset({LAST_OF_MLP})


@dataclass(frozen=True, slots=True)
class _Form:
    """What a known forward of attention has beside that of most."""

    known: KnownCode
    norms: tuple[str, str] | None  # of queries and keys, by their names
    window: Callable[[Any], dict[str, Any]]  # what it tells attention of its window


_FORMS = (
    _Form(known_forwards.ATTENTION, None, lambda _: {}),
    _Form(known_forwards.ATTENTION_IN_WINDOW, None, lambda module: {"sliding_window": module.sliding_window}),
    _Form(
        known_forwards.ATTENTION_IN_WINDOW_OF_CONFIG,
        None,
        lambda module: {"sliding_window": getattr(module.config, "sliding_window", None)},
    ),
    _Form(
        known_forwards.ATTENTION_WITH_NORMS,
        ("q_norm", "k_norm"),
        lambda module: {"sliding_window": module.sliding_window},
    ),
)


# Returns what was computed of a call's rows before, together with other layers; None where the layer computes them now.
Ahead: TypeAlias = Callable[[nn.Module, Tensor, dict[str, Any]], "Tensor | None"]


@dataclass(frozen=True, slots=True)
class CompiledLayer:
    """The forwards of a layer, of its attention and of its MLP, as they were when they were known."""

    layer: Callable[..., Any]
    attention: Callable[..., Any]
    mlp: Callable[..., Any]
    form: _Form
    attends: Callable[..., Any]  # the attention's, without transformers' wrappers
    cache: str  # the name by which both take it
    tells_cache: bool  # whether attention gives its cache its arguments too
    old_names: frozenset[str]  # of arguments, which the layer has renamed first
    of_attention: frozenset[str]  # the names of its modules
    turn: Any  # what the file of the attention turns queries and keys by, and half of them
    half: Any
    most_rows: int
    ahead: Ahead | None = None

    def __deepcopy__(self, _memo: Any) -> None:
        """Copies of a module are plain."""


def compile_layers(model: nn.Module, most_rows: int) -> int:
    """Have the decoder layers of a model compute steps of few rows in one go; return how many there are.

    Results have the bits of before. More rows, steps in training or with gradients, and calls that somebody follows, are
    the class's own.

    Args:
        model: Changed in place. Norms, products and gates that are compiled before are computed as compiled.
        most_rows: Of one call.
    """
    count = 0
    known: dict[Any, CompiledLayer | None] = {}
    for module in model.modules():
        attention, mlp = (module._modules.get(name) for name in (ATTENTION, MLP))
        if attention is None or mlp is None or "forward" in module.__dict__:
            continue
        kinds = type(module).forward, type(attention).forward, type(mlp).forward
        if kinds not in known:
            known[kinds] = _layer(*kinds, most_rows)
        layer = known[kinds]
        if layer is not None and not any(
            hasattr(type(owner), name)  # a property, say, which comes before a module
            for owner, names in ((module, _OF_LAYER), (attention, layer.of_attention), (mlp, _OF_MLP))
            for name in names
        ):
            put_on(module, layer, forward_of_layer)
            count += 1
    return count


def _layer(layer: Any, attention: Any, mlp: Any, most_rows: int) -> CompiledLayer | None:
    attends, computes = without_old_names(attention), unwrapped(layer)
    form = next((one for one in _FORMS if is_known(attends, one.known)), None)
    if (
        form is None
        or not is_known(computes, known_forwards.DECODER_LAYER)
        or not is_known(mlp, known_forwards.GATED)
        or (cache := cache_parameter(computes)) != cache_parameter(attends)
    ):
        return None
    source = attends.__globals__
    names = frozenset({*PROJECTIONS, LAST, *(form.norms or ())})
    tells_cache = digest_of(attends) in known_forwards.TELL_CACHE
    return CompiledLayer(
        layer, attention, mlp, form, attends, cache, tells_cache, old_names(layer), names, source[TURN], source[HALF],
        most_rows,
    )  # fmt: skip


def _is_found_in(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether what a module has by these names are its modules: nothing stands in the place of one, and none is gone."""
    # Of a module that computes by a forward of ours, its own `keys` makes a dict.
    return dict.keys(module._modules) >= names and dict.keys(module.__dict__).isdisjoint(names)


def forward_of_layer(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Compute a known layer: what stands in the place of its class's forward."""
    if torch.compiler.is_compiling():  # before anything is read that a graph would be guarded by
        return type(module).forward(module, *args, **kwargs)
    value = value_of(module)
    if isinstance(value, CompiledLayer) and value.ahead is not None and len(args) == 1:
        result = value.ahead(module, args[0], kwargs)
        if result is not None:
            return result
    if (
        isinstance(value, CompiledLayer)
        and len(args) == 1
        and is_step_of_few_rows(value, module, args[0])
        and kwargs.get("position_embeddings") is not None
        and value.old_names.isdisjoint(kwargs)
    ):
        return _computed(value, module, args[0], **kwargs)
    return type(module).forward(module, *args, **kwargs)


def is_step_of_few_rows(value: CompiledLayer, module: nn.Module, x: Any) -> bool:
    """Whether nobody would see another difference of `_computed` than its speed."""
    attention, mlp = module._modules.get(ATTENTION), module._modules.get(MLP)
    return (
        is_plain(x)
        and x.dim() == 3
        and x.shape[0] * x.shape[1] <= value.most_rows
        and not module.training
        and not torch.is_grad_enabled()
        and not torch._C._len_torch_function_stack()
        and not torch.is_autocast_enabled("cpu")
        and not is_watched()
        and not has_global_hook()
        and type(module).forward is value.layer
        and attention is not None
        and mlp is not None
        and type(attention).forward is value.attention
        and type(mlp).forward is value.mlp
        and _is_found_in(module, _OF_LAYER)
        and _is_found_in(attention, value.of_attention)
        and _is_found_in(mlp, _OF_MLP)
        and not (has_hook(attention) or has_hook(mlp) or is_replaced(attention))
    )


def _computed(  # noqa: PLR0913  (the arguments are transformers')
    value: CompiledLayer, layer: Any, hidden_states: Tensor, attention_mask: Any = None, position_ids: Any = None,
    use_cache: bool | None = False,  # noqa: FBT001, FBT002
    position_embeddings: Any = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Return what the known forward of a layer does."""
    modules, cache = layer._modules, kwargs.pop(value.cache, None)
    states = _norm(modules[INPUT_NORM], hidden_states)
    states = _attended(
        value, modules[ATTENTION], states, position_embeddings, attention_mask, cache,
        position_ids=position_ids, use_cache=use_cache, **kwargs,
    )  # fmt: skip
    hidden_states = hidden_states + states
    states = _norm(modules[INNER_NORM], hidden_states)
    mlp = modules[MLP]
    product = gated(mlp, states)
    return hidden_states + (mlp(states) if product is None else _product(mlp._modules[LAST_OF_MLP], product))


def _attended(
    value: CompiledLayer, self: Any, states: Tensor, position_embeddings: Any, attention_mask: Any,
    cache: Any, /, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Return what the known forward of attention does.

    Continuous batching hands its pool to attention as `cache`, beside the cache of the call.
    """
    modules, source, leading = self._modules, value.attends.__globals__, states.shape[:-1]
    shape = (*leading, -1, self.head_dim)
    query, key, values = (one.view(shape) for one in _products([modules[name] for name in PROJECTIONS], states))
    if value.form.norms is not None:
        of_query, of_key = value.form.norms
        query, key = _norm(modules[of_query], query), _norm(modules[of_key], key)
    query, key, values = query.transpose(1, 2), key.transpose(1, 2), values.transpose(1, 2)
    cos, sin = position_embeddings
    both = turned(source, (value.turn, value.half), query, key, cos, sin)
    query, key = source[TURN](query, key, cos, sin) if both is None else both
    if cache is not None:
        arguments = {"kwargs": kwargs} if value.tells_cache else {}
        key, values = cache.update(key, values, self.layer_idx, **arguments)
    attend = source["ALL_ATTENTION_FUNCTIONS"].get_interface(
        self.config._attn_implementation, source["eager_attention_forward"]
    )
    output, _ = attend(
        self, query, key, values, attention_mask,
        dropout=0.0 if not self.training else self.attention_dropout, scaling=self.scaling,
        **value.form.window(self), **kwargs,
    )  # fmt: skip
    return _product(modules[LAST], output.reshape(*leading, -1).contiguous())


def _norm(self: Any, x: Tensor) -> Tensor:
    result = None if has_hook(self) else normalized(self, x)
    return self(x) if result is None else result


def _product(self: Any, x: Tensor) -> Tensor:
    weight = None if has_hook(self) else weighed(self, x)
    return self(x) if weight is None else multiply_rows(x, *weight)


def _products(modules: Sequence[Any], x: Tensor) -> list[Tensor]:
    """Return the products of the same rows by the weights of several modules, in one pass over them where that can be."""
    weights: list[Weighed] = []
    for module in modules:
        weight = None if has_hook(module) else weighed(module, x)
        if weight is None or weight[0].dtype is not (weights or [weight])[0][0].dtype:
            return [module(x) for module in modules]
        weights.append(weight)
    return multiply_rows_by_each(x, weights)
