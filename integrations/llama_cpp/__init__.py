"""GGUF files for llama.cpp: written in the dtype that was verified, and verified again as files.

Importing this package imports no torch. Writing needs `safe-dtype[gguf]`.
"""

from .export_gguf import GGUF_TYPES, ExportedGguf, export_gguf
from .llama_cpp_drift import AnswerOfLlamaCpp, drift_of_llama_cpp

__all__ = ["GGUF_TYPES", "AnswerOfLlamaCpp", "ExportedGguf", "drift_of_llama_cpp", "export_gguf"]
