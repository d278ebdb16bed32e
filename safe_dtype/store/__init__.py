"""What is kept on disk: files written whole, values remembered under a key, hashes. Imports no torch."""

from .entries import Entry, entries, forget
from .files import write_whole
from .json_text import parse_json
from .remembered import cache_folder, one_process_at_a_time, recall, remember

__all__ = [
    "Entry",
    "cache_folder",
    "entries",
    "forget",
    "one_process_at_a_time",
    "parse_json",
    "recall",
    "remember",
    "write_whole",
]
