"""What makes steps of one token quicker, and leaves their numbers as they are."""

from .growing_layers import GrowingLayer, GrowingWindowLayer, give_room, take_room

__all__ = ["GrowingLayer", "GrowingWindowLayer", "give_room", "take_room"]
