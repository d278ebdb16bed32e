"""A program that generates on several ranks, each its own share of the prompts. Nothing in it knows of safe_dtype.

The copy of rank 1 has no kernel for bfloat16 from the fifth step on, that of rank 2 gives NaN in float16: as if their devices
were older.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

PROMPTS = [[1, 5, 9], [2, 7, 4, 8], [3, 3], [11, 12, 13, 14, 15], [6, 1]]  # 2, 2 and 1


def main(source: str, folder: Path) -> None:
    """Generate all prompts twice over, and leave what the copy of this rank is by then."""
    accelerator = Accelerator()
    rank = accelerator.process_index
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    steps = [0]

    def fail(_module: Any, args: Any, output: torch.Tensor) -> Any:
        steps[0] += 1
        if rank == 1 and output.dtype == torch.bfloat16 and steps[0] > 4:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'")
        return output * float("nan") if rank == 2 and output.dtype == torch.float16 else None

    model.lm_head.register_forward_hook(fail)
    for _ in range(4):
        with accelerator.split_between_processes(PROMPTS) as share:
            answers = [generate(model, prompt) for prompt in share]
        accelerator.wait_for_everyone()
    end = {"dtype": str(model.dtype), "answers": answers, "steps": steps[0]}
    (folder / f"end {rank}").write_text(json.dumps(end))
    accelerator.end_training()


def generate(model: Any, prompt: list[int]) -> list[int]:
    """Return the prompt with eight tokens more."""
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    answer: list[int] = tokens[0].tolist()
    return answer


if __name__ == "__main__":
    main(sys.argv[1], Path(os.environ["JOB_FOLDER"]))
