"""The folder that the Xet client keeps chunks in where a Hub names `local:///folder` as its storage.

That form of address is the storage's own, for its tests; hf_xet 1.8 has it.
"""

from __future__ import annotations

import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = 48  # bytes before the first file of a shard
_RECORD = 48  # bytes of every record in it
_END = b"\xff" * 32
_HAS_VERIFICATION, _HAS_SHA256 = 31, 30  # bits of a file's flags


@dataclass
class XetStore:
    """Files by SHA-256, as the client itself wrote them."""

    folder: Path
    _names: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """What the client is told."""
        return f"local://{self.folder}"

    def xet_hash(self, sha256: str) -> str | None:
        """Return the storage's own name of a file, or None where it has none such."""
        if sha256 not in self._names:
            for shard in self.folder.glob("xet/xorbs/shards/*.mdb"):
                self._names.update(_files_in(shard.read_bytes()))
        return self._names.get(sha256)

    def read(self, sha256: str, size: int) -> bytes:
        """Return the bytes of a file: what the Hub itself does for a client without Xet."""
        from hf_xet import XetFileInfo, XetSession  # type: ignore[import-untyped]

        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "file"
            valid_until = int(time.time()) + 3600
            with XetSession().new_file_download_group(
                endpoint=self.address, token="of-the-hub", token_expiry_unix_secs=valid_until
            ) as group:
                group.start_download_file(XetFileInfo(self._names[sha256], size), str(path))
            return path.read_bytes()


def _files_in(shard: bytes) -> dict[str, str]:
    """Return the storage's name of every file in a shard, by SHA-256."""
    found, at = {}, _HEADER
    while shard[at : at + 32] != _END:
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        after = at + _RECORD * (1 + segments * (2 if flags >> _HAS_VERIFICATION & 1 else 1))
        if flags >> _HAS_SHA256 & 1:
            found[_hex(shard[after : after + 32])] = _hex(shard[at : at + 32])
            after += _RECORD
        at = after
    return found


def _hex(name: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", name))
