"""A streamer that hands a token on only when the numbers that it came from were judged."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from .judged_later import left_to_the_caller


class HeldStreamer(BaseStreamer):  # type: ignore[misc]  # transformers has no types
    """Holds what it is fed until `release`. The end is left to the caller of the loop, which may be run in parts."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._held: list[Any] = []
        self.padded: tuple[torch.Tensor, torch.Tensor] | None = None  # rows that had ended, and their next token

    def put(self, value: Any) -> None:
        """Hold tokens."""
        if self.padded is not None:
            ended, pad = self.padded
            value = torch.where(ended.to(value.device), pad.to(value.device, value.dtype), value)
            self.padded = None
        self._held.append(value)

    def end(self) -> None:
        """Leave it to `end_now`."""

    def release(self) -> None:
        """Hand on what is held."""
        waiting, self._held = self._held, []
        if waiting:
            with left_to_the_caller():
                for value in waiting:
                    self._streamer.put(value)

    def drop_last(self) -> None:
        """Forget the latest of what is held, which came from numbers that were none, and hand on the rest."""
        del self._held[-1:]
        self.release()

    def end_now(self) -> None:
        """Hand on what is held, and the end."""
        self.release()
        with left_to_the_caller():
            self._streamer.end()
