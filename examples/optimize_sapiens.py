"""The job of Sapiens' `seg_optimizer.sh`, for any machine: a segmentation model in the fastest form that is verified.

python examples/optimize_sapiens.py                                   # a tiny random Sapiens2, half a minute
python examples/optimize_sapiens.py facebook/sapiens2-seg-0.4b --out optimized --form auto

Nothing is assumed of the device: no A100, no version of torch. Every form is compared with the model as it is, in float32;
what fails is written down with the line to blame, and what is chosen loads with `load_optimized`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import Sapiens2Config, Sapiens2ForSemanticSegmentation

from safe_dtype import Dynamic, load_optimized, optimize


def tiny_sapiens(folder: Path) -> Path:
    """Write a Sapiens2 with 12 classes and random weights, for images of 64 by 64 pixels, and return its folder."""
    torch.manual_seed(0)
    config = Sapiens2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_attention_heads=2, num_first_full_attention_layers=1, num_last_full_attention_layers=0,
        num_register_tokens=4, image_size=[64, 64], patch_size=16, num_labels=12, initializer_range=0.2,
        head_config={"upsample_out_channels": [32, 32], "conv_out_channels": [32], "conv_kernel_sizes": [1]},
    )  # fmt: skip
    Sapiens2ForSemanticSegmentation(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Optimize, load what was made, and segment two images with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder or a repository  [default: a tiny random one]")
    parser.add_argument("--out", type=Path, help="where everything goes  [default: a temporary folder]")
    parser.add_argument("--form", default="export", help="export, aoti, onnx, compile, auto, ...  [default: export]")
    parser.add_argument("--dtype", default="bfloat16", help="[default: bfloat16, as the original script]")
    parser.add_argument("--data", help="a folder of your own images, to verify on")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = asked.model or tiny_sapiens(Path(scratch) / "sapiens2")
        out = asked.out or Path(scratch) / "optimized"
        found = optimize(
            model, out=out, form=asked.form, dtype=asked.dtype, data=asked.data, dynamic=Dynamic(batch=(1, 32))
        )
        sys.stdout.write(f"status {int(found.status)}: {found.why}\n")
        if found.winner is None:
            sys.exit(int(found.status))
        segment = load_optimized(out)
        height, width = found.batches[0].tensors["pixel_values"]["shape"][2:]
        images = torch.rand(2, 3, height, width)
        classes = segment(pixel_values=images)["logits"].argmax(1)
        form = f"{segment.form} in {segment.dtype}"
        sys.stdout.write(
            f"{form}: masks of {tuple(classes.shape)}, {len(set(classes.flatten().tolist()))} classes in them\n"
        )
        sys.exit(int(found.status))


if __name__ == "__main__":
    main()
