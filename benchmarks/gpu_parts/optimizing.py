"""A Sapiens2 of the size of sapiens2-0.4b through every form of `optimize`, each by itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator

import torch
import transformers as tf

from safe_dtype import Dynamic, optimize
from safe_dtype.errors import SafeDtypeError

from .place import Place, Row

_FORMS = ("export", "compile", "aoti", "onnx")
_SECONDS = 75.0  # the most for one attempt
_REAL = {
    "image_size": [1024, 768],
    "head_config": {
        "upsample_out_channels": [768, 768], "conv_out_channels": [512, 512], "conv_kernel_sizes": [1, 1],
    },
}  # fmt: skip
_TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_attention_heads": 2, "num_first_full_attention_layers": 1, "num_last_full_attention_layers": 0,
    "num_register_tokens": 4, "image_size": [64, 64],
    "head_config": {"upsample_out_channels": [32, 32], "conv_out_channels": [32], "conv_kernel_sizes": [1]},
}  # fmt: skip


def rows(place: Place) -> Iterator[Row]:
    """Yield a row for each form in bfloat16; one that cannot be made is a row with the reason."""
    config = tf.Sapiens2Config(
        **(_TINY if place.is_tiny else _REAL), patch_size=16, num_labels=29, initializer_range=0.1
    )
    torch.manual_seed(0)
    model = tf.Sapiens2ForSemanticSegmentation(config).eval()
    parameters = model.num_parameters()
    for form in _FORMS[: place.count(len(_FORMS), 1)]:
        started = time.perf_counter()
        row: Row = {"form": form, "parameters": parameters, "image": str(config.image_size)}
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = optimize(
                    model, out=folder, form=form, dtype="bfloat16", dynamic=Dynamic(batch=(1, 4)), seconds=_SECONDS,
                    device=place.device,
                )  # fmt: skip
        except SafeDtypeError as error:
            yield row | {"seconds": time.perf_counter() - started, "error": f"{type(error).__name__}: {error}"[:400]}
            continue
        winner = result.winner
        yield row | {
            "seconds": time.perf_counter() - started, "status": int(result.status), "why": result.why,
            "over_eager": winner.speedup if winner else None,
            "build_s": winner.seconds.build if winner else None, "run_s": winner.seconds.run if winner else None,
            "drift": max((stage.distance.relative for stage in winner.stages), default=None) if winner else None,
            "bytes": winner.bytes if winner else None,
        }  # fmt: skip
