"""A plugin of torch that registers the rehearsal device, as the plugins of vendors register theirs.

With the folder above on `PYTHONPATH`, `import torch` loads it in every process. It bears the name of the plugin of
Moore Threads: `get_max_memory` of accelerate and `Pipeline(device=0)` of transformers look for a closed list of backends
(cuda, xpu, npu, mlu, musa, hpu), and of those that a plugin may register, musa is the one that both know and for which
they change nothing else (for npu, masks and attention differ).
"""

from __future__ import annotations

import os

import torch

NAME = "musa"

torch.ops.load_library(os.environ["REHEARSAL_LIBRARY"])
torch.utils.rename_privateuse1_backend(NAME)

from . import backend  # noqa: E402  it asks the library

torch._register_device_module(NAME, backend)
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)


def autoload() -> None:
    """Nothing more to do for `import torch`: importing this package has registered the device."""
