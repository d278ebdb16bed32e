"""Policy and facts in, plan out: pure functions, without torch."""

from .choose import make_plan
from .combine import combine
from .judge import candidates, judge
from .plan import Candidate, Cost, Decision, Ground, Plan
from .policy import Policy, Workload

__all__ = [
    "Candidate",
    "Cost",
    "Decision",
    "Ground",
    "Plan",
    "Policy",
    "Workload",
    "candidates",
    "combine",
    "judge",
    "make_plan",
]
