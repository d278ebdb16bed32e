"""Pipelines and models of diffusers: each part planned, loaded as planned, guarded, and given what it computes in."""

from .load_part import load_diffusers_model, plan_diffusers_model
from .load_pipeline import load_pipeline, pipeline_plan_of
from .pipeline_models import models_of
from .pipeline_plan import PipelinePlan

__all__ = [
    "PipelinePlan",
    "load_diffusers_model",
    "load_pipeline",
    "models_of",
    "pipeline_plan_of",
    "plan_diffusers_model",
]
