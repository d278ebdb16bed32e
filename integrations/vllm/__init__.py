"""A plugin of vLLM: the dtype that a model is served in is planned, and what vLLM would compute wrong is refused.

vLLM finds it by the entry point `safe_dtype` of the group `vllm.general_plugins`, and calls `register` in each of its
processes. Importing this package imports neither torch nor vllm.
"""

from .plugin import register

__all__ = ["register"]
