"""Whether a step of training fits into memory, before it is made; and what makes it fit."""

from .memory_plan import MemoryPlan, TrainingWay, plan_memory
from .traced_step import Checkpointing, TracedStep, trace_step

__all__ = ["Checkpointing", "MemoryPlan", "TracedStep", "TrainingWay", "plan_memory", "trace_step"]
