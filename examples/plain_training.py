"""A training loop on accelerate that knows nothing of safe_dtype: 20 steps on one sentence, on any number of processes.

python examples/plain_training.py
ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m safe_dtype.run examples/plain_training.py
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCE = "The argument is the name of the file that is opened for reading and writing in binary mode."
STEPS = 20

source = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny-qwen3")
accelerator = Accelerator(cpu=True)
torch.manual_seed(accelerator.process_index)
tokens = AutoTokenizer.from_pretrained(source)(SENTENCE, return_tensors="pt")["input_ids"][0]
model = AutoModelForCausalLM.from_pretrained(source)
batches = DataLoader([tokens] * 4 * STEPS * accelerator.num_processes, batch_size=4)
model, optimizer, batches = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-4), batches)

losses = []
for batch in batches:
    loss = model(input_ids=batch, labels=batch).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(accelerator.gather(loss.detach().reshape(1)).mean().item())

checksums = accelerator.gather(sum(weight.double().sum() for weight in model.parameters()).detach().reshape(1))
accelerator.print(
    f"{accelerator.num_processes} processes, {len(losses)} steps: loss {losses[0]:.2f} -> {losses[-1]:.2f}; "
    f"their weights are equal: {len(set(checksums.tolist())) == 1}"
)
accelerator.end_training()
