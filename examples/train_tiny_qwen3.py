"""Train `examples/tiny-qwen3`: a real, small Qwen3 that knows the docstrings of Python's standard library.

It needs no network and no GPU: the text comes with every Python. About 20 minutes on 2 cores:

    python examples/train_tiny_qwen3.py --out examples/tiny-qwen3
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import logging
import math
import platform
import random
import re
import shutil
import string
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

logger = logging.getLogger("train_tiny_qwen3")

CONTEXT = 256  # tokens
BATCH = 8  # windows of CONTEXT tokens; larger batches take fewer steps in the same time, and end worse
VOCABULARY = 2048
PEAK_LEARNING_RATE = 3e-3
STATE_EVERY = 200  # steps
HELD_OUT_PERCENT = 4

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = (
    "The function returns",
    "Return a list of",
    "If the file does not exist,",
    "The with statement is used to",
    "A class is",
    "This module provides",
    "Raises ValueError if",
    "An exception is raised when",
)
QUESTIONS = ("What does shutil.copyfile do?", "What does json.JSONDecoder do?")

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "lib2to3", "_bundled", "pydoc_data", "encodings", "turtledemo"}
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Entry:
    """One text about one thing."""

    title: str  # "json.loads(s, *)", or "" where the text has its own heading
    text: str
    question: str = ""  # the text's first paragraph answers it; "" where none fits


@dataclass(frozen=True, slots=True)
class Source:
    """The entries of one file, or of one topic of the language reference."""

    name: str
    num_bytes: int
    entries: tuple[Entry, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether it measures the model instead of teaching it: by name, so that no seed can move it."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_sources() -> list[Source]:
    """Read the standard library of the running Python, in the order of the names."""
    # Imported here, as some distributions leave the topics out: only this function should fail there.
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    sources = [
        Source(f"topic {name}", len(text.encode()), (Entry("", text.strip()),)) for name, text in sorted(topics.items())
    ]
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        # config-3.11-*, _sysconfigdata_*: written by the build, they hold the paths of a machine
        if SKIPPED_FOLDERS.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            code = path.read_text(encoding="utf-8", errors="replace")
            sources.append(Source("/".join(parts), len(code.encode()), (*_docstrings(code, parts), *_comments(code))))
    return sources


def _docstrings(code: str, parts: Sequence[str]) -> Iterator[Entry]:
    module = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
    stack: list[tuple[Documented, str]] = [(ast.parse(code), module)]
    while stack:
        node, name = stack.pop()
        stack.extend((child, f"{name}.{child.name}") for child in reversed(node.body) if isinstance(child, Documented))
        if text := ast.get_docstring(node):
            arguments = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else ""
            question = "" if isinstance(node, ast.Module) or "._" in name else f"What does {name} do?"
            yield Entry(name + arguments, text, question)


def _comments(code: str) -> Iterator[Entry]:
    """Yield the comments of several lines which are prose, not code that is commented out."""
    lines = (line.strip() for line in code.splitlines())
    for is_comment, block in itertools.groupby(lines, key=lambda line: line.startswith("#")):
        text = "\n".join(line.lstrip("#").removeprefix(" ").rstrip() for line in block).strip()
        num_letters = sum(char.isalpha() or char.isspace() for char in text)
        if is_comment and len(text) > 120 and num_letters > 0.9 * len(text):
            yield Entry("", text)


def unwrap(paragraph: str) -> str:
    """Join the lines of a paragraph of prose; give back lists, code and tables as they are."""
    lines = paragraph.splitlines()
    is_prose = all(line[:1].isalnum() or line[:1] in "\"'“(`" for line in lines)
    is_full = all(len(line) > 45 for line in lines[:-1])
    return " ".join(lines) if is_prose and is_full else paragraph


def without_repeats(sources: Sequence[Source]) -> list[Source]:
    """Drop each paragraph that was in an earlier source: topics quote one another, classes their base class."""
    seen: set[str] = set()
    return [
        Source(s.name, s.num_bytes, tuple(new for entry in s.entries if (new := _unseen(entry, seen)).text))
        for s in sources
    ]


def _unseen(entry: Entry, seen: set[str]) -> Entry:
    kept = []
    for paragraph in re.split(r"\n\s*\n", entry.text.expandtabs()):
        key = " ".join(paragraph.split())
        if len(key) < 40 or key not in seen:  # short ones ("For example:") bind the others together
            kept.append(unwrap(paragraph.rstrip()))
        seen.add(key)
    text = "\n\n".join(kept)
    return Entry(entry.title, text if len(text) > 30 else "", entry.question)


def as_documents(source: Source, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Yield each entry as pydoc would print it, and again as a chat where a question fits."""
    for entry in source.entries:
        yield (f"{entry.title}\n\n" if entry.title else "") + entry.text + END_OF_TEXT
        answer = entry.text.split("\n\n")[0]
        if entry.question and answer[-1] in string.punctuation:
            chat = [{"role": "user", "content": entry.question}, {"role": "assistant", "content": answer}]
            yield tokenizer.apply_chat_template(chat, tokenize=False).rstrip() + END_OF_TEXT
