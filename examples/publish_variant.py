"""Publish a float16 variant of the bundled model, and load it with plain transformers: end to end, offline.

python examples/publish_variant.py

It talks to a small Hub that this script starts on this machine (the one of our tests), through the real client. Leave
out the Hub, log in with `hf auth login`, and the same call publishes to huggingface.co.
"""

import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL, BASE, VARIANT = HERE / "tiny-qwen3", "org/tiny-qwen3", "org/tiny-qwen3-fp16"

LOAD = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{VARIANT}")
tokenizer = AutoTokenizer.from_pretrained("{VARIANT}")
tokens = model.generate(**tokenizer("The argument is", return_tensors="pt"), max_new_tokens=12, do_sample=False)
print(f"plain transformers, {{model.dtype}}: {{tokenizer.decode(tokens[0])}}")
"""


def main() -> None:
    """Start a Hub, put the base on it, publish the variant, and load that in a process without safe_dtype."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    loopback = import_module("publishing.loopback")

    with loopback.LoopbackHub() as hub, tempfile.TemporaryDirectory() as scratch:
        # The client reads these when it is imported: before anything of ours is.
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": scratch, "HF_HUB_OFFLINE": "0",
                       "HF_HUB_DISABLE_XET": "1", "DISABLE_SAFETENSORS_CONVERSION": "1"}  # fmt: skip
        hub.push(BASE, {path.name: path.read_bytes() for path in MODEL.iterdir() if path.is_file()})

        from safe_dtype import publish

        receipt = publish(BASE, VARIANT, dtype="float16", license="apache-2.0", public=True, folder=f"{scratch}/stage")
        sys.stdout.write(f"{receipt.state}: {receipt.url}, {len(receipt.files)} files\n")
        card = hub.files(VARIANT)["README.md"].decode()
        sys.stdout.write("\n".join(card.splitlines()[:24]) + "\n...\n")
        subprocess.run([sys.executable, "-c", LOAD], check=True)


if __name__ == "__main__":
    main()
