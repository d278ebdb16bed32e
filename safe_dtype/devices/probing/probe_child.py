"""The process that a dangerous measurement runs in: `python -m safe_dtype.devices.child`.

Reads a request as JSON from stdin; writes `{"ready": true}`, then one JSON line per finished cell to stdout.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

import torch

from .ops import OPS
from .probe import measure_here
from .probe_request import ProbeRequest, verdict_to_dict


def main() -> None:
    """Answer one request."""
    request = ProbeRequest.from_dict(json.load(sys.stdin))
    # What libraries print goes to stderr: stdout is ours alone.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        ops = import_module(request.ops_module).OPS if request.ops_module else OPS
        torch.set_num_threads(request.threads)
        if request.float32_precision != "mixed":
            torch.set_float32_matmul_precision(request.float32_precision)
        torch.empty(1, device=request.device)  # wakes the device, which is no cell's fault
        answers.write('{"ready": true}\n')
        for verdict in measure_here(request, ops):
            answers.write(json.dumps(verdict_to_dict(verdict)) + "\n")


if __name__ == "__main__":
    main()
