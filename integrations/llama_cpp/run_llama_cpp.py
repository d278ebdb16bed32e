"""Generates with llama.cpp, in an environment that has the package xllamacpp: a child of `llama_cpp_drift`.

    python run_llama_cpp.py JOB.json ANSWER.json

Only Python's own library is imported beside xllamacpp.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each prompt, the tokens that follow greedily, and with each the log probabilities of all tokens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["file"]
    params.n_ctx = job["context"]
    params.n_parallel, params.endpoint_metrics, params.verbosity = 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    server = xllamacpp.Server(params)
    return [_follow(server, prompt, job["new_tokens"], job["vocab_size"]) for prompt in job["prompts"]]


def _follow(server: Any, prompt: list[int], new_tokens: int, vocab_size: int) -> dict[str, Any]:
    tokens: list[int] = []
    rows: list[list[float]] = []

    def take(chunk: Any) -> None:
        if "error" in chunk:
            raise SystemExit(f"llama.cpp: {chunk['error']}")
        for step in (chunk["choices"][0].get("logprobs") or {}).get("content") or ():
            row = [float("-inf")] * vocab_size
            for token in step["top_logprobs"]:
                row[token["id"]] = token["logprob"]
            tokens.append(step["id"])
            rows.append(row)

    server.handle_completions(
        {
            "prompt": prompt, "n_predict": new_tokens, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True,
            "cache_prompt": False, "stream": True, "logprobs": vocab_size,
        },
        take,
    )  # fmt: skip
    return {"prompt": prompt, "tokens": tokens, "log_probabilities": rows}


if __name__ == "__main__":
    answers = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
