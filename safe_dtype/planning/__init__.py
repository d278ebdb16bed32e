"""Policy and facts in, plan out: pure functions, without torch."""

from .choose import make_plan
from .combine import combine
from .drift import beyond
from .judge import candidates, judge
from .plan import Candidate, Cost, Decision, Ground, Plan
from .policy import Policy, Workload
from .routes import Routes
from .worth import range_worth_measuring, worth_measuring

__all__ = [
    "Candidate",
    "Cost",
    "Decision",
    "Ground",
    "Plan",
    "Policy",
    "Routes",
    "Workload",
    "beyond",
    "candidates",
    "combine",
    "judge",
    "make_plan",
    "range_worth_measuring",
    "worth_measuring",
]
