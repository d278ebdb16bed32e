"""`SafeDiffusionPipeline`: the `from_pretrained` of `DiffusionPipeline`, planned and guarded."""

from __future__ import annotations

import os
from typing import Any

from safe_dtype.errors import NoPlanError
from safe_dtype.guarding import Report, report
from safe_dtype.guarding.state import guard_of
from safe_dtype.loading.diffusion import PipelinePlan, load_pipeline, models_of, pipeline_plan_of
from safe_dtype.planning import Policy


class SafeDiffusionPipeline:
    """Loads what `DiffusionPipeline` loads, and returns the pipeline of diffusers that the repository names."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, policy: Policy | str | None = None,
        pipeline_class: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Load a pipeline as `DiffusionPipeline.from_pretrained` does, each of its models in the dtype planned for it.

        Args:
            pretrained_model_name_or_path: A folder or a repository on the Hub, with a `model_index.json`.
            policy: How to choose: a `Policy`, or its short text such as "auto,prefer=memory".
            pipeline_class: Whose `from_pretrained` is called: another pipeline over the same parts, or an
                `AutoPipelineForX`; by default `DiffusionPipeline`.
            kwargs: Handed on untouched, but for the dtypes that they leave to us. A `dtype` (`torch_dtype`) that is passed,
                also one for each part as a dict, is an order. Models that are passed are guarded as they are.

        Returns:
            The pipeline of diffusers. Without an order each model is in the dtype that it was saved in, where this device
            has that.

        Raises:
            CheckpointError: If there is no such pipeline.
            StrictModeError: If `policy` is strict, and a dtype that was ordered is rejected here.
        """
        if pipeline_class is None:
            from diffusers import DiffusionPipeline  # here, for the documents are made without it

            pipeline_class = DiffusionPipeline
        return load_pipeline(pipeline_class.from_pretrained, pretrained_model_name_or_path, kwargs, policy)


def plan_of_pipeline(pipeline: Any) -> PipelinePlan:
    """Return the plan of each model that a pipeline holds now, also of one that was copied, or made of others' models.

    Raises:
        NoPlanError: If none of them was loaded by safe_dtype.
    """
    plan = pipeline_plan_of(pipeline)
    if plan is None:
        raise NoPlanError(type(pipeline).__name__)
    return plan


def reports_of(pipeline: Any) -> dict[str, Report]:
    """Return what happened so far to each guarded model of a pipeline, by the name of the part."""
    return {name: report(model) for name, model in models_of(pipeline).items() if guard_of(model) is not None}
