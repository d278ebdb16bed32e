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
    question = ""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", entry.text.expandtabs())):
        key = " ".join(paragraph.split())
        if len(key) < 40 or key not in seen:  # short ones ("For example:") bind the others together
            kept.append(unwrap(paragraph.rstrip()))
            question = entry.question if number == 0 else question
        seen.add(key)
    text = "\n\n".join(kept)
    return Entry(entry.title, text if len(text) > 30 else "", question)


def as_documents(source: Source, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Yield each entry as pydoc would print it, and again as a chat where a question fits."""
    for entry in source.entries:
        yield (f"{entry.title}\n\n" if entry.title else "") + entry.text + END_OF_TEXT
        answer = entry.text.split("\n\n")[0]
        if entry.question and answer[-1] in string.punctuation:
            chat = [{"role": "user", "content": entry.question}, {"role": "assistant", "content": answer}]
            yield tokenizer.apply_chat_template(chat, tokenize=False).rstrip() + END_OF_TEXT


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE. It has no normalizer, so it gives back every text as it was."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Make the untrained model, in float32."""
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # Greedy, so that every run and every dtype can be compared; the penalty keeps so small a model from looping.
    model.generation_config = GenerationConfig(
        do_sample=False, repetition_penalty=1.15, max_new_tokens=64, eos_token_id=stops, pad_token_id=stops[1]
    )
    return model


def batch_at(step: int, tokens: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the batch of one step, of shape (BATCH, CONTEXT): each epoch cuts and shuffles the text anew."""
    steps_per_epoch = (len(tokens) - CONTEXT) // (BATCH * CONTEXT)
    epoch, position = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(seed + epoch)
    shift = int(torch.randint(CONTEXT, (1,), generator=generator))
    starts = shift + CONTEXT * torch.randperm(steps_per_epoch * BATCH, generator=generator)
    return torch.stack([tokens[start : start + CONTEXT] for start in starts[position * BATCH : (position + 1) * BATCH]])


def learning_rate(done: float) -> float:
    """Return the rate after this share of the training: up for 4 %, then down a cosine to 2 % of its peak."""
    if done < 0.04:
        return PEAK_LEARNING_RATE * done / 0.04 + 1e-6
    return PEAK_LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.04) / 0.96)))


def train(model: Qwen3ForCausalLM, tokens: torch.Tensor, args: argparse.Namespace) -> int:
    """Train `model` in place, in float32, until `args.steps` or `args.minutes` are over. Return the steps taken."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    step, started = 0, time.monotonic()
    if args.state and args.state.exists():
        state = torch.load(args.state)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    model.train()
    while (done := max(step / args.steps, (time.monotonic() - started) / (60 * args.minutes))) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done)
        batch = batch_at(step, tokens, args.seed)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            logger.info("step %d: loss %.3f, %.0f s", step, loss.item(), time.monotonic() - started)
        if args.state and step % STATE_EVERY == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, args.state)
    return step


@torch.inference_mode()
def nats(model: Qwen3ForCausalLM, tokens: torch.Tensor) -> float:
    """Return the mean loss per token over windows of CONTEXT tokens; the first token of a window is not judged."""
    model.eval()
    losses = [
        model(input_ids=window[None], labels=window[None]).loss.float()
        for window in tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    ]
    return float(torch.stack(losses).mean())


def measure(folder: Path, held_out: Sequence[str]) -> dict[str, Any]:
    """Load the saved model as anybody would, and measure it in both dtypes on the held-out documents."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "".join(held_out)
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    found: dict[str, Any] = {"num_tokens": len(tokens), "num_bytes": len(text.encode())}
    for name in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=name)
        loss = nats(model, tokens)
        bits_per_byte = loss / math.log(2) * len(tokens) / found["num_bytes"]
        found[name] = {"perplexity": round(math.exp(loss), 3), "bits_per_byte": round(bits_per_byte, 4)}
    return found


def sample(folder: Path) -> dict[str, str]:
    """Return what the saved model makes of PROMPTS and QUESTIONS, in the dtype it is saved in."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    found = {}
    for prompt, text in zip((*PROMPTS, *QUESTIONS), (*PROMPTS, *texts), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
        found[prompt] = tokenizer.decode(output, skip_special_tokens=True)
    return found


def swap(new: Path, out: Path) -> None:
    """Put the folder `new` in the place of `out`, with the README that was there."""
    if (readme := out / "README.md").exists():
        shutil.copy(readme, new)
    if out.exists():
        shutil.rmtree(out)
    new.rename(out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train examples/tiny-qwen3 on Python's own documentation.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what is there is replaced")
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="end earlier, on a shorter schedule; not reproducible"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--state", type=Path, help="save the training here from time to time; go on from it if it exists")
    return parser.parse_args()


def main() -> None:
    """Read, train, save, measure."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.monotonic()

    # Held-out sources first: a paragraph in both is then missing from the training text.
    sources = without_repeats(sorted(read_sources(), key=lambda source: not source.is_held_out))
    taught = [source for source in sources if not source.is_held_out]
    tokenizer = train_tokenizer([entry.text for source in taught for entry in source.entries])
    documents = [text for source in taught for text in as_documents(source, tokenizer)]
    held_out = [text for source in sources if source.is_held_out for text in as_documents(source, tokenizer)]
    random.Random(args.seed).shuffle(documents)
    tokens = torch.tensor(tokenizer("".join(documents), verbose=False)["input_ids"])
    model = new_model(tokenizer)
    logger.info("%d tokens, %d parameters", len(tokens), model.num_parameters())
    steps = train(model, tokens, args)
    seconds = time.monotonic() - started

    new = args.out.with_name(f".{args.out.name}.new")
    model.to(torch.bfloat16).save_pretrained(new, max_shard_size="2MB")
    tokenizer.save_pretrained(new)
    facts = {
        "seed": args.seed,
        "steps": steps,
        "seconds": round(seconds),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "num_parameters": model.num_parameters(),
        "training_text": {
            "files": len(taught),
            "file_bytes": sum(source.num_bytes for source in taught),
            "text_bytes": sum(len(text.encode()) for text in documents),
            "tokens": len(tokens),
            "sha256": hashlib.sha256("".join(sorted(documents)).encode()).hexdigest(),
        },
        "held_out": measure(new, held_out),
        "held_out_sources": [source.name for source in sources if source.is_held_out],
        "completions": sample(new),
    }
    (new / "training.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    swap(new, args.out)
    logger.info("%s: %s", args.out, json.dumps(facts["held_out"]))


if __name__ == "__main__":
    main()
