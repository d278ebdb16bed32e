"""How far llama.cpp itself drifts from the model, run with the file in an environment of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_dtype.errors import EnvironmentNotFitError
from safe_dtype.processes.child import how_it_ended, last_error, run
from safe_dtype.store.temporary import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHILD = Path(__file__).with_name("run_llama_cpp.py")
_SECONDS = 1800.0
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True, slots=True)
class AnswerOfLlamaCpp:
    """What llama.cpp generated greedily from a file, against what the model in float32 says of the same tokens."""

    positions: int  # tokens that were generated
    agreement: float  # the share of them at which both have the same first choice
    kl: float  # nats of mean KL from the model's distribution to llama.cpp's

    def __str__(self) -> str:
        return f"llama.cpp: {self.positions} tokens, {self.agreement:.2%} same top-1, KL {self.kl:.2g} nats"


def drift_of_llama_cpp(
    file: Path, model: Any, prompts: Sequence[Sequence[int]], *, python: str | os.PathLike[str] | None = None,
    new_tokens: int = 16, seconds: float = _SECONDS,
) -> AnswerOfLlamaCpp:  # fmt: skip
    """Generate from `file` with llama.cpp, and compare each distribution with that of `model`.

    Args:
        file: A GGUF file.
        model: The language model of transformers that it was made of; in float32 it is the truth.
        prompts: Ids of tokens.
        python: An interpreter with the package xllamacpp, which brings llama.cpp; by default this one.
        new_tokens: That are generated after each prompt.
        seconds: The time limit.

    Raises:
        EnvironmentNotFitError: If that interpreter cannot run llama.cpp with the file.
    """
    import torch

    vocab_size = int(model.get_output_embeddings().weight.shape[0])
    longest = max(map(len, prompts)) + new_tokens
    job = {
        "file": str(file.resolve()), "prompts": [list(prompt) for prompt in prompts], "new_tokens": new_tokens,
        "context": -(-(longest + 8) // 256) * 256, "threads": torch.get_num_threads(), "vocab_size": vocab_size,
    }  # fmt: skip
    kl, agreed, positions = 0.0, 0, 0
    for answer in _answers(job, python or sys.executable, seconds):
        tokens, start = answer["tokens"], len(answer["prompt"])
        with torch.no_grad():
            logits = model(torch.tensor([answer["prompt"] + tokens], device=model.device)).logits[0]
        own = logits[start - 1 : -1].double().log_softmax(-1).cpu()
        # llama.cpp rounds each of them, so that they do not add up to 1.
        other = torch.tensor(answer["log_probabilities"], dtype=torch.float64).log_softmax(-1)
        kl += float((own.exp() * (own - other)).sum())
        agreed += int((own.argmax(-1) == other.argmax(-1)).sum())
        positions += len(tokens)
    if not positions:
        raise EnvironmentNotFitError("tokens from llama.cpp", "look at what it says with `--verbose` of its own tools")
    return AnswerOfLlamaCpp(positions, agreed / positions, kl / positions)


def _answers(job: dict[str, Any], python: str | os.PathLike[str], seconds: float) -> list[dict[str, Any]]:
    with temporary_folder("safe_dtype-llama_cpp-") as folder:
        order, answer, log = folder / "job.json", folder / "answer.json", folder / "log"
        order.write_text(json.dumps(job), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        words = [os.fspath(python), "-I", str(_CHILD), str(order), str(answer)]
        status = run(words, log=log, end=time.monotonic() + seconds, environment=environment)
        if status != 0:
            raise EnvironmentNotFitError(
                f"llama.cpp in {python}: it {how_it_ended(status, seconds)}: {last_error(log)}",
                "make an environment with `pip install xllamacpp`, and name its interpreter",
            )
        answers: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
        return answers
