"""Layers of a `DynamicCache` that keep room ahead: a step copies its own keys and values, not all before them.

transformers grows a layer by concatenation, so each token copies the whole cache. Here the keys and values of a layer
are views of larger tensors, and the next ones are written behind them. What has been written is never written over:
whoever holds an older view, as a snapshot of the guard, keeps the very numbers that it had. A layer whose keys or
values were replaced since (cropped, reordered, cast, moved, rolled back) is concatenated as ever, and is given room
again when nothing but steps has happened to it in between: beams and assisted decoding cost what they cost in transformers.
"""

from __future__ import annotations

import copyreg
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import cache_utils as cu

from ..numerics.followed import is_followed

# Below this a concatenation is quicker than writing behind it, which takes four calls in the place of one.
_LEAST_BYTES = 2**17
_ROOM = "_safe_dtype_room"


class PlaceBehind(NamedTuple):
    """Where the next position of a layer is written, behind those that it shows; addresses, and strides in numbers."""

    keys: int  # the first that is shown
    values: int
    new_keys: int
    new_values: int
    length: int  # positions that are shown
    end: int  # what has been written until now
    key_strides: tuple[int, ...]  # from one item of the batch, one head and one position to the next
    value_strides: tuple[int, ...]


class _Room:
    """Two tensors with room, and what of them the layer was given last.

    `limit` is the greatest length that is known to be needed; None where none is known.
    """

    __slots__ = (
        "_end", "_key_bytes", "_keys", "_keys_at", "_limit", "_shown_keys", "_shown_values", "_value_bytes", "_values",
        "_values_at",
    )  # fmt: skip

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._shown_keys: Tensor | None = None
        self._shown_values: Tensor | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._end = 0

    def holds(self, layer: Any) -> bool:
        """Whether the layer has what it was given last."""
        return self._shown_keys is not None and layer.keys is self._shown_keys and layer.values is self._shown_values

    def show(self, keys: Tensor, values: Tensor, *, is_written: bool) -> None:
        """Note what the layer has now: the end of what was written here, or tensors of their own."""
        self._shown_keys, self._shown_values = keys, values
        if not is_written:
            self._keys = self._values = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what is shown with `keys` and `values` behind it; None where a concatenation is quicker.

        Args:
            keys: Shape (batch, heads, new positions, width), for which `fits` holds.
            values: The same of the values.
        """
        new = keys.shape[2]
        if not self.has_place(new, _LEAST_BYTES):
            return None
        assert self._keys is not None
        assert self._values is not None
        self._keys.narrow(2, self._end, new).copy_(keys)
        self._values.narrow(2, self._end, new).copy_(values)
        return self.taken(new)

    def has_place(self, new: int, least: int) -> bool:
        """Whether there is place behind what is shown; it is made where keys have `least` bytes.

        Args:
            new: For so many positions.
            least: Of fewer bytes no place is made.
        """
        past_keys, past_values = self._shown_keys, self._shown_values
        assert past_keys is not None
        assert past_values is not None
        length = past_keys.shape[2]
        if (
            self._keys is None
            or self._values is None
            or self._end + new > self._keys.shape[2]
            or not self._is_end(length)
        ):
            if past_keys.nbytes < least:
                return False
            capacity = self._capacity(length + new)
            self._keys = _with_room(past_keys, capacity)
            self._values = _with_room(past_values, capacity)
            self._keys_at, self._key_bytes = self._keys.data_ptr(), self._keys.stride(2) * self._keys.itemsize
            self._values_at, self._value_bytes = (
                self._values.data_ptr(),
                self._values.stride(2) * self._values.itemsize,
            )
            self._end = length
        return True

    def place(self) -> PlaceBehind:
        """Return where the next position is written, `has_place` being true, and where all of them lie."""
        assert self._shown_keys is not None
        assert self._keys is not None
        assert self._values is not None
        length = self._shown_keys.shape[2]
        to_first, to_next = self._end - length, self._end
        return PlaceBehind(
            self._keys_at + to_first * self._key_bytes, self._values_at + to_first * self._value_bytes,
            self._keys_at + to_next * self._key_bytes, self._values_at + to_next * self._value_bytes,
            length, to_next, self._keys.stride()[:3], self._values.stride()[:3],
        )  # fmt: skip

    def ends_at(self, end: int) -> bool:
        """Whether what was written ends there."""
        return self._keys is not None and self._end == end

    def taken(self, new: int) -> tuple[Tensor, Tensor]:
        """Return what is shown with as many positions behind it, which are written there."""
        assert self._shown_keys is not None
        assert self._keys is not None
        assert self._values is not None
        length = self._shown_keys.shape[2]
        begin = self._end - length
        self._end += new
        return self._keys.narrow(2, begin, length + new), self._values.narrow(2, begin, length + new)

    def _is_end(self, length: int) -> bool:
        """Whether what is shown is the last `length` positions still: the `data` of a tensor can be replaced."""
        assert self._shown_keys is not None
        assert self._shown_values is not None
        begin = self._end - length
        return self._shown_keys.data_ptr() == self._keys_at + begin * self._key_bytes and (
            self._shown_values.data_ptr() == self._values_at + begin * self._value_bytes
        )

    def _capacity(self, length: int) -> int:
        larger = length + length // 2
        # Pages that nothing was written to are no memory yet.
        return larger if self._limit is None or self._limit < length else min(larger, self._limit)


def _with_room(past: Tensor, capacity: int) -> Tensor:
    batch, heads, length, width = past.shape
    whole = past.new_empty(batch, heads, capacity, width)
    whole.narrow(2, 0, length).copy_(past)
    return whole


def _fits(past: Tensor, new: Tensor) -> bool:
    """Whether `new` can be written behind `past`: numbers of this process, of one kind, that nobody follows."""
    return (
        type(new) is Tensor
        and type(past) is Tensor
        and new.is_cpu
        and past.is_cpu
        and new.dtype is past.dtype
        and new.dim() == 4
        and new.shape[:2] == past.shape[:2]
        and new.shape[3] == past.shape[3]
        and (not past.is_inference() or torch.is_inference_mode_enabled())
        and not (torch.is_grad_enabled() and (new.requires_grad or past.requires_grad))
    )


def _appended(layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return all keys and values of a layer with new ones written behind them; None where they are to be concatenated."""
    room: _Room = layer.__dict__[_ROOM]
    if (
        room.holds(layer)
        and _fits(layer.keys, keys)
        and _fits(layer.values, values)
        and keys.shape[2] == values.shape[2]
        and not torch._C._is_tracing()
        and not is_followed()
    ):
        return room.append(keys, values)
    return None


def has_steps_alone(layer: Any) -> bool:
    """Whether a layer of a cache keeps room ahead for whole sequences, and nothing but steps has happened to it."""
    return type(layer) is GrowingLayer and "update" not in layer.__dict__ and layer.__dict__[_ROOM].holds(layer)


def place_behind(layer: Any, shape: tuple[int, int, int], dtype: torch.dtype) -> PlaceBehind | None:
    """Return where other code than `update` can write a position, which `take_place` shows then; None: nowhere.

    Args:
        layer: Of a cache.
        shape: batch, heads and width of the keys and values of a position.
        dtype: Theirs.
    """
    if not has_steps_alone(layer) or torch._C._is_tracing() or is_followed():
        return None
    room: _Room = layer.__dict__[_ROOM]
    for past in (layer.keys, layer.values):
        if (
            type(past) is not Tensor
            or not past.is_cpu
            or past.dtype is not dtype
            or (*past.shape[:2], past.shape[3]) != shape
            or (past.is_inference() and not torch.is_inference_mode_enabled())
            or (torch.is_grad_enabled() and past.requires_grad)
        ):
            return None
    return room.place() if room.has_place(1, 0) else None


def take_place(layer: Any, place: PlaceBehind) -> bool:
    """Have a layer show what was written at `place`; return whether it is as it was when `place` was found."""
    room: _Room | None = layer.__dict__.get(_ROOM)
    if room is None or not room.holds(layer) or not room.ends_at(place.end):
        return False
    layer.keys, layer.values = room.taken(1)
    room.show(layer.keys, layer.values, is_written=True)
    return True


def _plain_copy(layer: Any, kind: Any) -> Any:
    twin = kind.__new__(kind)
    twin.__dict__.update((name, value) for name, value in layer.__dict__.items() if name != _ROOM)
    return twin


def _as_plain(layer: Any, kind: type) -> tuple[Any, ...]:
    """Return what pickle makes a layer of that class of, where safe_dtype is not installed too."""
    return copyreg._reconstructor, (kind, object, None), _plain_state(layer)  # type: ignore[attr-defined]


def _plain_state(layer: Any) -> dict[str, Any]:
    """Return the attributes of a layer without its room, in tensors that are no larger than what they show."""
    return {name: _trimmed(value) for name, value in layer.__dict__.items() if name != _ROOM}


def _trimmed(value: Any) -> Any:
    if type(value) is not Tensor or value.untyped_storage().nbytes() == value.nbytes:
        return value
    return value.clone(memory_format=torch.contiguous_format)


class GrowingLayer(cu.DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A `DynamicLayer` with room ahead. A copy or a pickle of it is a plain one."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all of them, of shape (batch, heads, length, width)."""
        if torch.compiler.is_compiling():  # first, for a compiler follows this line and nothing else of ours
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        appended = _appended(self, key_states, value_states)
        if appended is None:
            super().update(key_states, value_states, *args, **kwargs)
        else:
            self.keys, self.values = appended
        self.__dict__[_ROOM].show(self.keys, self.values, is_written=appended is not None)
        return self.keys, self.values

    def __copy__(self) -> Any:
        return _plain_copy(self, cu.DynamicLayer)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _as_plain(self, cu.DynamicLayer)

    def __repr__(self) -> str:
        return str(cu.DynamicLayer.__name__)


class GrowingWindowLayer(cu.DynamicSlidingWindowLayer):  # type: ignore[misc]  # transformers has no types
    """A `DynamicSlidingWindowLayer` whose window moves along a larger tensor. A copy or a pickle of it is a plain one."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; return those in sight of the new ones, and keep a window less one of them."""
        if torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        appended = None if getattr(self, "record_past", False) else _appended(self, key_states, value_states)
        if appended is None:
            seen = super().update(key_states, value_states, *args, **kwargs)
        else:
            seen = appended
            self.cumulative_length += key_states.shape[-2]
            self.keys, self.values = (one[:, :, -self.sliding_window + 1 :, :] for one in seen)
        self.__dict__[_ROOM].show(self.keys, self.values, is_written=appended is not None)
        return seen  # type: ignore[no-any-return]

    def __copy__(self) -> Any:
        return _plain_copy(self, cu.DynamicSlidingWindowLayer)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _as_plain(self, cu.DynamicSlidingWindowLayer)

    def __repr__(self) -> str:
        return str(cu.DynamicSlidingWindowLayer.__name__)


_GROWING = {cu.DynamicLayer: GrowingLayer, cu.DynamicSlidingWindowLayer: GrowingWindowLayer}
_PLAIN = {growing: plain for plain, growing in _GROWING.items()}


def give_room(cache: Any, limit: int | None) -> None:
    """Have the layers of a fresh cache of transformers keep room ahead, those of classes that are known here.

    Args:
        cache: A `DynamicCache` that is not offloaded, or an `EncoderDecoderCache` around one. Others stay as they are.
        limit: How many positions the cache will have at most, if that is known.
    """
    if type(cache) is cu.EncoderDecoderCache:
        cache = cache.self_attention_cache  # the other half is written once
    if type(cache) is not cu.DynamicCache or cache.offloading:
        return
    for layer in cache.layers:
        growing = _GROWING.get(type(layer))
        if growing is not None:
            layer.__dict__[_ROOM] = _Room(limit)
            layer.__class__ = growing


def take_room(cache: Any) -> None:
    """Undo `give_room`: the layers are those of transformers again, and hold no more memory than those would."""
    if type(cache) is cu.EncoderDecoderCache:
        cache = cache.self_attention_cache
    for layer in getattr(cache, "layers", ()):
        plain = _PLAIN.get(type(layer))
        if plain is not None:
            state = _plain_state(layer)
            layer.__class__ = plain
            layer.__dict__.clear()
            layer.__dict__.update(state)
