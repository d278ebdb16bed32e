"""Pipelines of diffusers, each of their models in the dtype that is right and fast on this machine, and guarded.

    from safe_dtype.integrations.diffusers import SafeDiffusionPipeline, plan_of_pipeline

    pipeline = SafeDiffusionPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    print(plan_of_pipeline(pipeline).explain())

Importing this package does not import diffusers.
"""

from safe_dtype.loading.diffusion import PipelinePlan

from .safe_pipeline import SafeDiffusionPipeline, plan_of_pipeline, reports_of

__all__ = ["PipelinePlan", "SafeDiffusionPipeline", "plan_of_pipeline", "reports_of"]
