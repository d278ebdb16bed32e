"""Find out by experiment whether a failure is one of dtypes: run the module that failed alone, in another dtype.

Texts only order the trials, and rule out what must not run twice.
"""

from .experiment import diagnose
from .failure_shown import failure_shown
from .findings import Findings
from .hook_errors import is_raised_by_a_hook
from .inner_autocast import names_autocast
from .module_call import ModuleCall, calls_in, modules_in
from .veto import is_vetoed, leaves_on_purpose, passes_through_callers

__all__ = [
    "Findings",
    "ModuleCall",
    "calls_in",
    "diagnose",
    "failure_shown",
    "is_raised_by_a_hook",
    "is_vetoed",
    "leaves_on_purpose",
    "modules_in",
    "names_autocast",
    "passes_through_callers",
]
