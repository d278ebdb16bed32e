"""Train `examples/tiny-qwen3`: a real, small Qwen3 that has read the documentation inside Python's standard library.

It needs no network and no GPU, as the text comes with every Python. About 20 minutes on 2 cores:

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
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

logger = logging.getLogger("train_tiny_qwen3")

CONTEXT = 256  # tokens
BATCH = 4  # windows of CONTEXT tokens; after the same 1 M tokens, 8 ended at a perplexity of 53, 4 at 44
VOCABULARY = 2048  # tokens, the 256 bytes and 3 special ones among them
PEAK_LEARNING_RATE = 4e-3  # 2e-3 learned more slowly; 3e-3 and 5e-3 ended alike
HELD_OUT_PERCENT = 4  # of the sources

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ("The argument is", "The function returns", "Close the socket", "If the file does not exist,")
QUESTIONS = ("What does shutil.copyfile do?", "What does pathlib.Path.exists do?")

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "lib2to3", "pydoc_data", "encodings", "turtledemo"}
WRITTEN_BY_THE_BUILD = ("config-", "_sysconfigdata")  # with the paths of the machine that built this Python
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Entry:
    """One text about one thing."""

    title: str  # "json.loads(s, *)"; "" where the text has its own heading, or needs none
    text: str
    question: str = ""  # which the first paragraph answers; "" where there is none


@dataclass(frozen=True, slots=True)
class Source:
    """The entries of one file, or of one topic of the language reference."""

    name: str
    num_bytes: int
    entries: tuple[Entry, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether it measures the model and does not teach it: decided by name, so that no seed moves it."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_sources() -> list[Source]:
    """Read the standard library of the running Python, in the order of the names."""
    from pydoc_data.topics import topics  # some distributions leave it out; `--help` works there too

    sources = [Source(f"topic {key}", len(text.encode()), (Entry("", text),)) for key, text in sorted(topics.items())]
    for path in sorted((root := Path(sysconfig.get_path("stdlib"))).rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED_FOLDERS.isdisjoint(parts) and not parts[0].startswith(WRITTEN_BY_THE_BUILD):
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
            is_public = not isinstance(node, ast.Module) and "._" not in name
            yield Entry(name + arguments, text, f"What does {name} do?" if is_public else "")


def _comments(code: str) -> Iterator[Entry]:
    """Yield the longer comments which are prose, not code that is commented out."""
    lines = (line.strip() for line in code.splitlines())
    for is_comment, block in itertools.groupby(lines, key=lambda line: line.startswith("#")):
        text = "\n".join(line.lstrip("#").removeprefix(" ") for line in block).strip()
        num_letters = sum(char.isalpha() or char.isspace() for char in text)
        if is_comment and len(text) > 120 and num_letters > 0.9 * len(text):
            yield Entry("", text)


def without_repeats(sources: Sequence[Source]) -> list[Source]:
    """Drop each paragraph that was in an earlier source: topics quote one another, classes their base class."""
    seen: set[str] = set()
    kept = ((source, [_unseen(entry, seen) for entry in source.entries]) for source in sources)
    return [replace(source, entries=tuple(entry for entry in entries if entry.text)) for source, entries in kept]


def _unseen(entry: Entry, seen: set[str]) -> Entry:
    paragraphs = [paragraph.rstrip() for paragraph in re.split(r"\n\s*\n", entry.text.expandtabs().strip())]
    # Short ones ("For example:") bind the others together, they may come again.
    kept = [text for text in paragraphs if len(text) < 40 or " ".join(text.split()) not in seen]
    seen.update(" ".join(text.split()) for text in paragraphs)
    text = "\n\n".join(map(_unwrap, kept))
    return Entry(entry.title, text if len(text) > 30 else "", entry.question if kept[:1] == paragraphs[:1] else "")


def _unwrap(paragraph: str) -> str:
    """Join the lines of a paragraph of prose; give back lists, code and tables as they are."""
    lines = paragraph.splitlines()
    is_prose = all(line[:1].isalnum() or line[:1] in "\"'“(`" for line in lines)
    return " ".join(lines) if is_prose and all(len(line) > 45 for line in lines[:-1]) else paragraph


def as_documents(source: Source) -> Iterator[str]:
    """Yield each entry as pydoc prints it, and every third one that answers a question also as a chat."""
    for number, entry in enumerate(source.entries):
        yield (f"{entry.title}\n\n" if entry.title else "") + entry.text + END_OF_TEXT
        if entry.question and number % 3 == 0:
            answer = entry.text.split("\n\n")[0]
            yield f"{IM_START}user\n{entry.question}{IM_END}\n{IM_START}assistant\n{answer}{IM_END}{END_OF_TEXT}"


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE. It has no normalizer, so it gives back every text as it was."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False)
    trainer.special_tokens = [END_OF_TEXT, IM_START, IM_END]
    trainer.initial_alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainer)
    names = {"eos_token": IM_END, "pad_token": END_OF_TEXT, "additional_special_tokens": [IM_START]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=CONTEXT, **names)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(eos: int, pad: int) -> Qwen3ForCausalLM:
    """Make the untrained model, in float32."""
    heads = {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    sizes = {"hidden_size": 192, "intermediate_size": 576, "vocab_size": VOCABULARY, "initializer_range": 0.06}
    tokens = {"max_position_embeddings": CONTEXT, "bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad}
    model = Qwen3ForCausalLM(Qwen3Config(**heads, **sizes, **tokens, tie_word_embeddings=True))
    # Greedy, so that runs and dtypes can be compared; the penalty keeps so small a model from going round in circles.
    greedy = {"do_sample": False, "repetition_penalty": 1.15, "max_new_tokens": 64}
    model.generation_config = transformers.GenerationConfig(**greedy, eos_token_id=[eos, pad], pad_token_id=pad)
    return model


def batch_at(step: int, tokens: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the batch of one step, of shape (BATCH, CONTEXT). Each epoch has its own cuts and its own order."""
    steps_per_epoch = len(tokens) // (BATCH * CONTEXT) - 1
    epoch, position = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(seed + epoch)
    shift = int(torch.randint(CONTEXT, (1,), generator=generator))
    order = torch.randperm(steps_per_epoch * BATCH, generator=generator)
    return tokens[shift:].unfold(0, CONTEXT, CONTEXT)[order[position * BATCH : (position + 1) * BATCH]]


def learning_rate(done: float) -> float:
    """Return the rate after this share of the training: up for 4 % of it, then down a cosine."""
    return PEAK_LEARNING_RATE * min(done / 0.04 + 0.001, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model: Qwen3ForCausalLM, tokens: torch.Tensor, args: argparse.Namespace) -> int:
    """Train `model` in place, in float32, until `args.steps` or `args.minutes` are over. Return the steps taken."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    step, started = 0, time.monotonic()
    if args.state and args.state.exists():
        step, weights, moments = torch.load(args.state)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    model.train()
    while (done := max(step / args.steps, (time.monotonic() - started) / (60 * args.minutes))) < 1:
        optimizer.param_groups[0]["lr"] = learning_rate(done)
        batch = batch_at(step, tokens, args.seed)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 100 == 0:
            logger.info("step %d: loss %.3f, %.0f s", step, loss.item(), time.monotonic() - started)
            if args.state:
                torch.save((step, model.state_dict(), optimizer.state_dict()), args.state)
    return step


@torch.inference_mode()
def measure(folder: Path, text: str) -> dict[str, Any]:
    """Load the saved model as anybody would; measure it in both dtypes over windows of CONTEXT tokens of `text`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, verbose=False, return_tensors="pt")["input_ids"][0]
    num_bytes = len(tokenizer.decode(tokens, skip_special_tokens=True).encode())
    found: dict[str, Any] = {"tokens": len(tokens), "bytes": num_bytes}
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        losses = [model(input_ids=ids, labels=ids).loss.item() for ids in tokens.unfold(0, CONTEXT, CONTEXT)[:, None]]
        loss = sum(losses) / len(losses)
        bits = loss / math.log(2) * len(tokens)
        found[dtype] = {"perplexity": round(math.exp(loss), 3), "bits_per_byte": round(bits / num_bytes, 4)}
    return found


def completions(folder: Path) -> dict[str, str]:
    """Return what the saved model makes of PROMPTS and QUESTIONS, in the dtype it is saved in."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = {prompt: prompt for prompt in PROMPTS}
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        texts[question] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = {prompt: tokenizer(text, return_tensors="pt")["input_ids"] for prompt, text in texts.items()}
    outputs = {prompt: model.generate(ids, max_new_tokens=40)[0, ids.shape[1] :] for prompt, ids in tokens.items()}
    return {prompt: tokenizer.decode(output, skip_special_tokens=True) for prompt, output in outputs.items()}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train examples/tiny-qwen3 on Python's own documentation.")
    parser.add_argument("--out", type=Path, required=True, help="folder to replace; its README.md stays")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop earlier: shorter, not reproducible")
    parser.add_argument("--seed", type=int, default=0, help="for the weights and the order (default: %(default)s)")
    parser.add_argument("--state", type=Path, help="file to save the training to, and to go on from where it exists")
    return parser.parse_args()


def main() -> None:
    """Read, train, save, measure; then put the new folder in the place of the old one."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(2)  # fixed, as the sums depend on it
    torch.manual_seed(args.seed)
    started = time.monotonic()
    # Held-out sources first: a paragraph that is in both is then missing from the training text.
    sources = without_repeats(sorted(read_sources(), key=lambda source: not source.is_held_out))
    held_out, taught = ([source for source in sources if source.is_held_out is wanted] for wanted in (True, False))
    documents = [document for source in taught for document in as_documents(source)]
    random.Random(args.seed).shuffle(documents)
    tokenizer = train_tokenizer([entry.text for source in taught for entry in source.entries])
    tokens = tokenizer("".join(documents), verbose=False, return_tensors="pt")["input_ids"][0]
    model = new_model(tokenizer.eos_token_id, tokenizer.pad_token_id)
    logger.info("%d tokens, %d parameters", len(tokens), model.num_parameters())
    steps = train(model, tokens, args)
    new = args.out.with_name(f".{args.out.name}.new")
    model.to(torch.bfloat16).save_pretrained(new, max_shard_size="2MB")
    tokenizer.save_pretrained(new)
    facts = {
        "seed": args.seed,
        "steps": steps,
        "seconds": round(time.monotonic() - started),
        "python": platform.python_version(),
        "versions": {library.__name__: library.__version__ for library in (tokenizers, torch, transformers)},
        "num_parameters": model.num_parameters(),
        "training_text": {
            "files": len(taught),
            "file_bytes": sum(source.num_bytes for source in taught),
            "tokens": len(tokens),
            "sha256": hashlib.sha256("".join(documents).encode()).hexdigest(),
        },
        "held_out": measure(new, "".join(document for source in held_out for document in as_documents(source))),
        "held_out_files": [source.name for source in held_out],
        "completions": completions(new),
    }
    (new / "training.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (args.out / "README.md").exists():
        shutil.copy(args.out / "README.md", new)
    shutil.rmtree(args.out, ignore_errors=True)
    new.rename(args.out)
    logger.info("%s: %s", args.out, json.dumps(facts["held_out"]))


if __name__ == "__main__":
    main()
