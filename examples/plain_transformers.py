"""A program that knows nothing of safe_dtype: run it as it is, or under `safe-dtype run`, and compare the dtype.

python examples/plain_transformers.py
safe-dtype run examples/plain_transformers.py
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

source = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny-qwen3")
tokenizer = AutoTokenizer.from_pretrained(source)
model = AutoModelForCausalLM.from_pretrained(source, device_map="auto")
prompt = tokenizer("The argument is", return_tensors="pt").to(model.device)
tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)
sys.stdout.write(f"{model.dtype}: {tokenizer.decode(tokens[0])}\n")
