"""Several processes that hold one model: they agree on the dtype before it loads, and on every step down."""

from .ballot import LARGEST_PAYLOAD, Vote, VoteTally, cast_vote
from .world import World, current_world, known_world

__all__ = ["LARGEST_PAYLOAD", "Vote", "VoteTally", "World", "cast_vote", "current_world", "known_world"]
