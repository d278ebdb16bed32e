"""Several processes that hold one model: they agree on the dtype before it loads, and on every step down."""

from .ballot import LARGEST_PAYLOAD, Vote, VoteTally, cast_vote
from .gather import gather_texts
from .generation import agreeing, announce_failures
from .world import World, current_world, known_world

__all__ = [
    "LARGEST_PAYLOAD",
    "Vote",
    "VoteTally",
    "World",
    "agreeing",
    "announce_failures",
    "cast_vote",
    "current_world",
    "gather_texts",
    "known_world",
]
