"""Where a checkpoint is looked for: the arguments of `from_pretrained` that say so."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Where:
    """A folder, a file or a repository on the Hub, with what else decides which files are taken."""

    source: str | os.PathLike[str]
    subfolder: str = ""
    revision: str | None = None
    variant: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    use_safetensors: bool | None = None
    gguf_file: str | None = None

    @property
    def name(self) -> str:
        """What the user wrote."""
        return os.fspath(self.source)
