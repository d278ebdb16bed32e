"""Adapters to other tools, one folder a tool; installed as `safe_dtype.integrations`.

Importing this package tells `safe_dtype.optimizing` what they add to it; a tool's folder is imported on first use.
"""

from safe_dtype.optimizing.exporters import register_exporter

register_exporter("optimum-onnx", "safe_dtype.integrations.optimum")
