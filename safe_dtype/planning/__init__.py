"""Policy and facts in, plan out: pure functions, without torch."""

from .combine_devices import combine, combine_ranks
from .judge import candidates, judge
from .made_for import MadeFor
from .make_plan import beyond_texts, make_plan
from .matmul_routes import Routes
from .plan import Candidate, Cost, Decision, Ground, Plan
from .policy import Policy, Workload
from .worth_measuring import faster_if_asked, first_measurement, range_worth_measuring, worth_measuring

__all__ = [
    "Candidate",
    "Cost",
    "Decision",
    "Ground",
    "MadeFor",
    "Plan",
    "Policy",
    "Routes",
    "Workload",
    "beyond_texts",
    "candidates",
    "combine",
    "combine_ranks",
    "faster_if_asked",
    "first_measurement",
    "judge",
    "make_plan",
    "range_worth_measuring",
    "worth_measuring",
]
