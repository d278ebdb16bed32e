"""Where a KV cache stood before a step, and the way back there.

Attention layers grow by concatenation, so they are cut back to their length: a reference to the old tensors would
keep a second cache alive. What a step overwrites in place (recurrent and convolution states, the slots that leave a
full static window) is cloned before the step; it is small. A class of cache that is not known here is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from transformers import cache_utils as cu

from ..decoding import GrowingLayer, GrowingWindowLayer

_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
_CACHES = tuple(
    getattr(cu, name)
    for name in ("Cache", "DynamicCache", "StaticCache", "QuantizedCache", "MtpCache", "DFlashCache")
    if hasattr(cu, name)  # the last two are not in every release of transformers 5
)
_WITH_HALVES = cu.EncoderDecoderCache

Restore = Callable[[], None]
TakeSnapshot = Callable[[Any, int | None], Restore]


class CacheSnapshot:
    """A cache before a step.

    `kwargs` are the keyword arguments of the step: they tell how many positions it adds. `known` is False for a cache
    whose classes are not known here: it cannot be rolled back.
    """

    __slots__ = ("_cache", "_count", "_counters", "_halves", "_lengths", "_own", "_profile", "_restores", "known")

    known: bool

    def __init__(self, cache: Any, kwargs: Mapping[str, Any]) -> None:
        self._cache = cache
        self._halves: tuple[CacheSnapshot, ...] = ()
        if type(cache) is _WITH_HALVES:
            halves = (cache.self_attention_cache, cache.cross_attention_cache)
            self._halves = tuple(CacheSnapshot(half, kwargs) for half in halves)
            self._own = dict(cache.is_updated)
            self.known = all(half.known for half in self._halves)
            return
        profile = _profile_of(cache)
        if profile is None:
            self.known = False
            return
        self._profile = profile
        self.known = profile.known
        self._count = profile.count
        self._own = cache.__dict__.copy()
        self._lengths = profile.lengths()
        self._counters = profile.counters() if profile.static else ()
        self._restores: Sequence[Restore] = ()
        if profile.special:
            new_tokens = _new_tokens(kwargs)
            self._restores = [take(layer, new_tokens) for take, layer in profile.special]

    def roll_back(self) -> bool:
        """Bring the cache back, as often as the step is repeated. False: it cannot be brought back."""
        if self._halves:
            self._cache.is_updated.clear()
            self._cache.is_updated.update(self._own)
            done = [half.roll_back() for half in self._halves]  # both, whatever the first one says
            return all(done)
        if not self.known:
            return False
        if not self._profile.settled:  # a later step may have found out how its layers are, which hold nothing again
            _profiles.pop(self._cache, None)
            _latest.clear()
        del self._cache.layers[self._count :]  # layers that the step appended
        self._cache.__dict__.update(self._own)
        for restore in self._restores:
            restore()
        static = self._profile.static
        counters = [*self._counters] * len(static) if self._profile.static_even else self._counters
        for layer, counter in zip(static, counters, strict=True):
            _rewind(layer, counter)
        lengths = [*self._lengths] * len(self._profile.grown) if self._profile.even else self._lengths
        done = [_cut(layer, length) for layer, length in zip(self._profile.grown, lengths, strict=True)]
        return all(done)


def is_known(cache: Any) -> bool:
    """Whether the classes of `cache` and of its layers are known here. Of an encoder and a decoder ask each half."""
    return _is_of_known_class(cache) and all(type(layer) in _KINDS for layer in cache.layers)


def _is_of_known_class(cache: Any) -> bool:
    return type(cache) in _CACHES and not cache.offloading


class _Profile:
    """How snapshots of the layers of one cache are taken: found out once, for it costs more than a snapshot."""

    __slots__ = (
        "__weakref__", "cache", "count", "even", "grown", "known", "settled", "special", "static", "static_even",
    )  # fmt: skip

    def __init__(self, cache: Any) -> None:
        self.cache = ref(cache)
        layers = cache.layers
        self.count = len(layers)
        self.grown: list[Any] = []
        self.static: list[Any] = []
        self.special: list[tuple[TakeSnapshot, Any]] = []
        self.settled = self.known = True
        for layer in layers:
            kinds = _KINDS.get(type(layer))
            if kinds is None:
                self.known = False
            elif not _is_initialized(layer):
                self.settled = False
                self.special.append((_snapshot_whole, layer))
            elif kinds == (_snapshot_grown,):
                self.grown.append(layer)
            elif kinds == (_snapshot_static,):
                self.static.append(layer)
            else:
                self.special += [(kind, layer) for kind in kinds]
        self.even = len({_length(layer) for layer in self.grown}) == 1
        self.static_even = len(_read_together([layer.cumulative_length for layer in self.static])) == 1

    def is_of(self, cache: Any) -> bool:
        """Whether `cache` is the one that it was made of, for which it still holds."""
        is_same = self.cache() is cache
        return is_same and self.settled and self.count == len(cache.layers) and not cache.offloading

    def lengths(self) -> Sequence[int]:
        """Return the length of every layer that grows; where all are even, of the first."""
        if self.even:
            return (_length(self.grown[0]),)
        return [_length(layer) for layer in self.grown]

    def counters(self) -> Sequence[torch.Tensor]:
        """Return copies of the counters of the static layers, one for all where they are even.

        They stay on their device: reading one would synchronize.
        """
        if self.static_even:
            return [self.static[0].cumulative_length.clone()]
        return [layer.cumulative_length.clone() for layer in self.static]


def _read_together(counters: list[torch.Tensor]) -> set[int]:
    """Return what these counters say, reading once from each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for counter in counters:
        by_device.setdefault(counter.device, []).append(counter.reshape(()))
    return {int(number) for group in by_device.values() for number in torch.stack(group).tolist()}


_profiles: WeakKeyDictionary[Any, _Profile] = WeakKeyDictionary()
# The latest of them, which most steps ask for again. Nothing but the cache keeps it alive, for it has the layers.
_latest: list[ref[_Profile]] = []


def _profile_of(cache: Any) -> _Profile | None:
    """Return how snapshots of a cache are taken; None where its class is not known."""
    latest = _latest[0]() if _latest else None
    if latest is not None and latest.is_of(cache):
        return latest
    if not _is_of_known_class(cache):
        return None
    known = _profiles.get(cache)
    if known is None or not known.is_of(cache):
        known = _profiles[cache] = _Profile(cache)
    _latest[:] = [ref(known)]
    return known


def _new_tokens(kwargs: Mapping[str, Any]) -> int | None:
    for name in _TOKENS:
        value = kwargs.get(name)
        if isinstance(value, torch.Tensor) and value.dim() > 1:
            return value.shape[1]
    return None


def _is_initialized(layer: Any) -> bool:
    if hasattr(layer, "is_recurrent_states_initialized"):  # of linear attention
        flags = [*layer.is_conv_states_initialized.values(), *layer.is_recurrent_states_initialized.values()]
        # Some use only one of the two states, so a fresh one is one with neither.
        return any(flags) and bool(getattr(layer, "is_initialized", True))
    return bool(layer.is_initialized)


def _length(layer: Any) -> int:
    keys = layer.keys
    if keys is None:
        return 0
    shape = keys.shape
    return shape[-2] if len(shape) > 1 else 0


def _cut(layer: Any, length: int) -> bool:
    now = _length(layer)
    if now > length:
        layer.keys = layer.keys[..., :length, :]
        layer.values = layer.values[..., :length, :]
    return now >= length


def _snapshot_grown(layer: Any, _new_tokens: int | None) -> Restore:
    length = _length(layer)

    def restore() -> None:
        _cut(layer, length)

    return restore


def _snapshot_whole(layer: Any, _new_tokens: int | None) -> Restore:
    """For a layer that holds nothing yet: remember all its attributes."""
    before = {name: _copied(value) for name, value in layer.__dict__.items()}

    def restore() -> None:
        layer.__dict__.clear()
        layer.__dict__.update({name: _copied(value) for name, value in before.items()})

    return restore


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, (dict, list)) else value


def _snapshot_references(*names: str) -> TakeSnapshot:
    """For what a step replaces by new tensors of bounded size, and never writes into."""

    def take(layer: Any, _new_tokens: int | None) -> Restore:
        before = [(name, layer.__dict__[name]) for name in names if name in layer.__dict__]
        return lambda: layer.__dict__.update(before)

    return take


def _snapshot_indexed(layer: Any, _new_tokens: int | None) -> Restore:
    keys, positions = layer.indexer_keys, layer.indexer_position_ids
    length = None if keys is None else keys.shape[-2]
    reach = None if positions is None else positions.shape[-1]
    begun = layer.is_indexer_initialized
    del keys, positions  # not kept alive: they grow with the text

    def restore() -> None:
        layer.indexer_keys = None if length is None else layer.indexer_keys[..., :length, :]
        layer.indexer_position_ids = None if reach is None else layer.indexer_position_ids[..., :reach]
        layer.is_indexer_initialized = begun

    return restore


def _snapshot_float8(layer: Any, _new_tokens: int | None) -> Restore:
    length = layer.cumulative_length

    def restore() -> None:
        layer.cumulative_length = length
        for name in ("_quantized_keys", "_quantized_values"):
            codes, scale = getattr(layer, name)
            setattr(layer, name, (codes[..., :length, :], scale))

    return restore


def _snapshot_static(layer: Any, _new_tokens: int | None) -> Restore:
    counter = layer.cumulative_length.clone()
    return lambda: _rewind(layer, counter)


def _rewind(layer: Any, counter: torch.Tensor) -> None:
    """Set a static layer back. Addresses are static: all in place. A NaN in an unused slot would spoil the used ones."""
    layer.cumulative_length.copy_(counter)
    for tensor in (layer.keys, layer.values):
        tensor[..., int(counter) :, :].zero_()


def _snapshot_static_indexer(layer: Any, _new_tokens: int | None) -> Restore:
    before = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in layer.__dict__.items()
        if name.startswith("indexer_cumulative") or name == "is_indexer_initialized"
    }

    def restore() -> None:
        for name, value in before.items():
            if isinstance(value, torch.Tensor):
                getattr(layer, name).copy_(value)
            else:
                setattr(layer, name, value)

    return restore


def _snapshot_static_window(layer: Any, new_tokens: int | None) -> Restore:
    """A full window moves up in place: what will fall out at its beginning is saved."""
    size, filled = layer.max_cache_len, layer.cumulative_length_int
    added = size if new_tokens is None else new_tokens
    lost = min(max(filled + added - size, 0), size)
    counter = layer.cumulative_length.clone()
    # Not yet full, only `filled` of its slots hold anything.
    moved = lost if filled < size else min(added, size)
    saved = [tensor[..., :moved, :].clone() for tensor in (layer.keys, layer.values)] if lost else []

    def restore() -> None:
        if layer.cumulative_length_int != filled:
            for tensor, begin in zip((layer.keys, layer.values), saved, strict=False):
                left = min(filled, size) - moved
                rest = tensor[..., :left, :].clone()
                tensor[..., :moved, :].copy_(begin)
                tensor[..., moved : moved + left, :].copy_(rest)
                tensor[..., moved + left :, :].zero_()
        layer.cumulative_length_int = filled
        layer.cumulative_length.copy_(counter)
        for tensor in (layer.keys, layer.values):
            tensor[..., min(filled, size) :, :].zero_()  # see _rewind

    return restore


def _snapshot_states(layer: Any, _new_tokens: int | None) -> Restore:
    """Recurrent and convolution states are written over in place: cloned, and bounded in size."""
    flags = ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state", "conv_kernel_size")
    before = [(name, dict(getattr(layer, name))) for name in flags]
    states = [
        (states, index, tensor, None if tensor is None else tensor.clone())
        for states in (layer.conv_states, layer.recurrent_states)
        for index, tensor in states.items()
    ]

    def restore() -> None:
        for name, values in before:
            getattr(layer, name).update(values)
        for states_now, index, tensor, saved in states:
            states_now[index] = tensor
            if saved is not None:
                tensor.copy_(saved)

    return restore


def _snapshot_nothing(_layer: Any, _new_tokens: int | None) -> Restore:
    return lambda: None


_snapshot_window = _snapshot_references("keys", "values", "cumulative_length")
_snapshot_quantized = _snapshot_references(
    "keys", "values", "cumulative_length", "_quantized_keys", "_quantized_values", "_pending_beam_idx"
)

# By the names of transformers, of whose releases not every one has them all.
_NAMED: dict[str, tuple[TakeSnapshot, ...]] = {
    "DynamicLayer": (_snapshot_grown,),
    "DynamicSlidingWindowLayer": (_snapshot_window,),
    "DynamicIndexedLayer": (_snapshot_grown, _snapshot_indexed),
    "StaticLayer": (_snapshot_static,),
    "StaticSlidingWindowLayer": (_snapshot_static_window,),
    "StaticIndexedLayer": (_snapshot_static, _snapshot_static_indexer),
    "QuantoQuantizedLayer": (_snapshot_quantized,),
    "HQQQuantizedLayer": (_snapshot_quantized,),
    "Fp8QuantizedLayer": (_snapshot_float8,),
    "LinearAttentionLayer": (_snapshot_states,),
    "LinearAttentionAndFullAttentionLayer": (_snapshot_states, _snapshot_grown),
    "LinearAttentionAndSlidingWindowAttentionLayer": (_snapshot_states, _snapshot_window),
    "LinearAttentionAndStaticFullAttentionLayer": (_snapshot_states, _snapshot_static),
    "LinearAttentionAndStaticSlidingWindowAttentionLayer": (_snapshot_states, _snapshot_static_window),
    "DummyLayer": (_snapshot_nothing,),
}
# By the very class: a subclass may keep more than its parents do.
_KINDS: dict[type, tuple[TakeSnapshot, ...]] = {
    GrowingLayer: (_snapshot_grown,),
    GrowingWindowLayer: (_snapshot_window,),
    **{getattr(cu, name): take for name, take in _NAMED.items() if hasattr(cu, name)},
}
