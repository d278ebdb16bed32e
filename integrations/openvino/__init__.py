"""OpenVINO IR of language models: exported in the dtype that was verified, and verified again as OpenVINO computes it.

Importing this package imports no torch. optimum-intel, which exports, needs an older transformers than ours: it runs in an
environment of its own.
"""

from .export_openvino import OPENVINO_TYPES, ExportedOpenvino, export_openvino

__all__ = ["OPENVINO_TYPES", "ExportedOpenvino", "export_openvino"]
