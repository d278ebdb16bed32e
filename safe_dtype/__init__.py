"""from_pretrained and generate in the fastest dtype the device really has: measured, explained, safe.

    from safe_dtype import SafeAutoModelForCausalLM, plan_of

    model = SafeAutoModelForCausalLM.from_pretrained("examples/tiny-qwen3")
    print(plan_of(model).explain())

A `SafeAutoModelForX` exists for every `AutoModelForX` of the installed transformers. Importing this package imports
neither torch nor transformers: what needs them is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import NoDtypeLeft, SafeDtypeError, SafeDtypeWarning
from .facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, INT4, INT8, Drift, Dtype, exceeds
from .models.origin import plan_of
from .patching import patch, patched, unpatch
from .planning import Decision, Plan, Policy, Workload, make_plan
from .processes.rank_process import mark_rank as _mark_rank

if TYPE_CHECKING:
    from .checkpoints import read_checkpoint
    from .devices import detect, facts_of, measure, prior_facts
    from .guarding import (
        Event,
        FailureKind,
        Incident,
        NotPossible,
        Remedy,
        Report,
        guard,
        on_event,
        register_remedy,
        report,
        unguard,
    )
    from .loading import SafeAutoModel
    from .numerics import compute_in
    from .optimizing import Dynamic, Optimized, load_optimized, optimize
    from .publishing import publish
    from .ranks import init_process_group
    from .training import PrecisionGuard, TorchLoop, float32_masters
    from .training.trainer.attach import attach
    from .verifying import drift_from, measure_drift, record_outputs, text_batches

__version__ = "0.1.0"

_mark_rank()  # what a rank starts from now on is none itself

__all__ = [
    "BFLOAT16",
    "FLOAT8_E4M3",
    "FLOAT16",
    "FLOAT32",
    "INT4",
    "INT8",
    "Decision",
    "Drift",
    "Dtype",
    "Dynamic",
    "Event",
    "FailureKind",
    "Incident",
    "NoDtypeLeft",
    "NotPossible",
    "Optimized",
    "Plan",
    "Policy",
    "PrecisionGuard",
    "Remedy",
    "Report",
    "SafeAutoModel",
    "SafeDtypeError",
    "SafeDtypeWarning",
    "TorchLoop",
    "Workload",
    "__version__",
    "attach",
    "compute_in",
    "detect",
    "drift_from",
    "exceeds",
    "facts_of",
    "float32_masters",
    "guard",
    "init_process_group",
    "load_optimized",
    "make_plan",
    "measure",
    "measure_drift",
    "on_event",
    "optimize",
    "patch",
    "patched",
    "plan_of",
    "prior_facts",
    "publish",
    "read_checkpoint",
    "record_outputs",
    "register_remedy",
    "report",
    "text_batches",
    "unguard",
    "unpatch",
]

_LOADED_ON_USE = {
    "compute_in": "numerics",
    "SafeAutoModel": "loading",
    "Event": "guarding",
    "FailureKind": "guarding",
    "Incident": "guarding",
    "NotPossible": "guarding",
    "Remedy": "guarding",
    "Report": "guarding",
    "guard": "guarding",
    "on_event": "guarding",
    "register_remedy": "guarding",
    "report": "guarding",
    "unguard": "guarding",
    "read_checkpoint": "checkpoints",
    "detect": "devices",
    "facts_of": "devices",
    "measure": "devices",
    "prior_facts": "devices",
    "drift_from": "verifying",
    "measure_drift": "verifying",
    "record_outputs": "verifying",
    "text_batches": "verifying",
    "Dynamic": "optimizing",
    "Optimized": "optimizing",
    "load_optimized": "optimizing",
    "optimize": "optimizing",
    "publish": "publishing",
    "init_process_group": "ranks",
    "PrecisionGuard": "training",
    "TorchLoop": "training",
    "float32_masters": "training",
    "attach": "training.trainer.attach",
}


def __getattr__(name: str) -> Any:
    if name == "optimize":
        import_module(".integrations", __name__)  # they register the exporters that its `via` names
    if name == "guard" or name.startswith("SafeAutoModel"):
        import_module(".ranks", __name__)  # where there are several, they agree
    if name in _LOADED_ON_USE:
        return getattr(import_module(f".{_LOADED_ON_USE[name]}", __name__), name)
    if name.startswith("SafeAutoModelFor"):
        return import_module(".loading", __name__).safe_auto_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
