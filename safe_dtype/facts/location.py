"""Where a checkpoint is looked for: the arguments of `from_pretrained` that say so."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path


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

    def in_folder(self) -> Where:
        """Return the same place as `from_pretrained` takes it: of the path of a GGUF file its folder, and `gguf_file`."""
        path = Path(self.source)
        if self.gguf_file is not None or path.suffix != ".gguf" or not path.is_file():
            return self
        return replace(self, source=str(path.parent), gguf_file=path.name)

    @property
    def name(self) -> str:
        """What the user wrote."""
        return os.fspath(self.source)
