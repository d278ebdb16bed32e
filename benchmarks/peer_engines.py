"""One engine that runs a language model: a checkpoint converted for it, and generated with. A child of `peers_cpu.py`.

It runs in that engine's own environment, so only Python's own library is imported before the engine is known. Each
engine is set as its documentation says for the quickest run on a CPU, with as many threads as it is told.

    python peer_engines.py convert ENGINE VARIANT CHECKPOINT FOLDER
    python peer_engines.py run ENGINE VARIANT FOLDER JOB.json

The last line that it prints is its result in JSON.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

_WARM_UP = 32  # tokens of the prompt that warms up
_COMPARED = 8  # tokens, where an engine tells them only in a second run


@dataclass(frozen=True)
class Job:
    """What is generated: tokens after a prompt, greedily, and on beyond an end of the text."""

    prompt: list[int]
    new_tokens: int
    threads: int
    logits: str = ""  # a file for the logits of every step, (steps, vocabulary), float32; empty: none is written


@dataclass(frozen=True)
class Generated:
    """Tokens, and when each was there."""

    tokens: list[int]
    seconds: list[float]  # since the call, one for each token

    @classmethod
    def timed(cls, tokens: Iterable[int], count: int) -> Generated:
        """Take `count` of `tokens`, which come as they are generated."""
        taken, seconds, began = [], [], time.perf_counter()
        for token in islice(tokens, count):
            seconds.append(time.perf_counter() - began)
            taken.append(int(token))
        return cls(taken, seconds)


Generate = Callable[[list[int], int], Generated]  # a prompt, and how many tokens after it


# transformers and safe_dtype


def _with_transformers(folder: Path, variant: str, job: Job) -> Generate:
    from transformers import AutoModelForCausalLM

    return _of_model(AutoModelForCausalLM.from_pretrained(folder, dtype=variant), job)


def _with_safe_dtype(folder: Path, variant: str, job: Job) -> Generate:
    from safe_dtype import SafeAutoModelForCausalLM, plan_of

    policy = None if variant == "auto" else f"{variant},max_drift=1000"  # no other engine is held to a drift
    model = SafeAutoModelForCausalLM.from_pretrained(folder, policy=policy)
    plan = plan_of(model)
    sys.stderr.write(f"{plan.storage}, {plan.compute}: {plan.reason}\n")
    return _of_model(model, job)


def _of_model(model: Any, job: Job) -> Generate:
    import torch

    torch.set_num_threads(job.threads)

    def generate(prompt: list[int], count: int) -> Generated:
        ids, clock = torch.tensor([prompt]), _Clock()
        outputs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            pad_token_id=0, streamer=clock, return_dict_in_generate=True, output_logits=bool(job.logits),
        )  # fmt: skip
        if job.logits and count == job.new_tokens:
            torch.save(torch.cat(outputs.logits).float(), job.logits)
        return Generated(outputs.sequences[0, len(prompt) :].tolist(), clock.seconds[1:])

    return generate


class _Clock:
    """A streamer that notes when it gets what: first the prompt, then every token."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: list[float] = []

    def put(self, _value: Any) -> None:
        """Note the time."""
        self.seconds.append(time.perf_counter() - self.began)

    def end(self) -> None:
        """Nothing is left to note."""


# llama.cpp: a wheel, and built from its source for this very processor


def _to_gguf(variant: str, checkpoint: Path, folder: Path) -> None:
    """Write the file that llama.cpp's own converter would: its names, its types, by its package."""
    import gguf
    import numpy

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    kind = gguf.GGMLQuantizationType[variant]
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{variant}"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokens(writer, checkpoint, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, values in _bfloat16_tensors(checkpoint):
        own = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(new_name, numpy.ascontiguousarray(gguf.quants.quantize(values, own)), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _bfloat16_tensors(checkpoint: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and values, in float32, of every tensor. numpy has no bfloat16, which is the upper half of float32."""
    import numpy

    for shard in sorted(checkpoint.glob("*.safetensors")):
        with shard.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = about["data_offsets"]
                bits = numpy.fromfile(shard, numpy.uint16, (end - begin) // 2, offset=8 + size + begin)
                yield name, (bits.astype(numpy.uint32) << 16).view(numpy.float32).reshape(about["shape"])


def _add_tokens(writer: Any, checkpoint: Path, size: int) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    by_id = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    by_id |= {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([1 if number in by_id else 5 for number in range(size)])  # normal, or unused
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    )


def _with_llama_cpp_wheel(folder: Path, _variant: str, job: Job) -> Generate:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "model.gguf")
    params.n_ctx, params.n_batch, params.n_ubatch = _room(job), 512, 512
    params.n_parallel, params.endpoint_metrics, params.verbosity = 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.threads
    server = xllamacpp.Server(params)

    def answer(prompt: list[int], count: int, take: Callable[[Any], None], **more: Any) -> None:
        asked = {"prompt": prompt, "n_predict": count, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
        server.handle_completions({**asked, "cache_prompt": False, "stream": True, **more}, take)

    def generate(prompt: list[int], count: int) -> Generated:
        tokens: list[int] = []
        seconds: list[float] = []
        began = time.perf_counter()
        # Each chunk is that of one token, and the last one is no token's.
        answer(prompt, count, lambda _: seconds.append(time.perf_counter() - began))
        # The ids come only with their probabilities, which take time.
        answer(prompt, min(count, _COMPARED), lambda chunk: tokens.extend(_ids_in(chunk)), logprobs=1)
        return Generated(tokens, seconds[:count])

    return generate


def _ids_in(chunk: Any) -> list[int]:
    return [one["id"] for one in ((chunk["choices"][0].get("logprobs") or {}).get("content") or ())]


def _with_llama_cpp_built(folder: Path, _variant: str, job: Job) -> Generate:
    from llama_cpp import Llama

    model = Llama(
        str(folder / "model.gguf"), n_ctx=_room(job), n_batch=512, n_ubatch=512, n_threads=job.threads,
        n_threads_batch=job.threads, flash_attn=True, verbose=False,
    )  # fmt: skip

    def generate(prompt: list[int], count: int) -> Generated:
        model.reset()
        return Generated.timed(model.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0), count)

    return generate


def _room(job: Job) -> int:
    return -(-(len(job.prompt) + job.new_tokens + 8) // 256) * 256


# CTranslate2


def _to_ctranslate2(variant: str, checkpoint: Path, folder: Path) -> None:
    stored = "int8" if variant.startswith("int8") else "bfloat16"  # whatever the file holds is cast when it is loaded
    program = Path(sys.executable).parent / "ct2-transformers-converter"
    _called(program, "--model", checkpoint, "--output_dir", folder, "--quantization", stored, "--force")


def _with_ctranslate2(folder: Path, variant: str, job: Job) -> Generate:
    import ctranslate2

    generator = ctranslate2.Generator(
        str(folder), device="cpu", compute_type=variant, inter_threads=1, intra_threads=job.threads
    )
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(prompt: list[int], count: int) -> Generated:
        steps = generator.generate_tokens(
            [words[token] for token in prompt], max_length=count, min_length=count, sampling_topk=1
        )
        return Generated.timed((step.token_id for step in steps), count)

    return generate


# OpenVINO


def _to_openvino(variant: str, checkpoint: Path, folder: Path) -> None:
    program = Path(sys.executable).parent / "optimum-cli"
    _called(
        program, "export", "openvino", "--model", checkpoint, "--task", "text-generation-with-past",
        "--weight-format", variant.partition("-")[0], folder,
    )  # fmt: skip


def _with_openvino(folder: Path, variant: str, job: Job) -> Generate:
    import numpy
    import openvino
    import openvino_genai

    more = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"} if variant.endswith("-f32") else {}
    pipeline = openvino_genai.LLMPipeline(
        str(folder), "CPU", PERFORMANCE_HINT="LATENCY", INFERENCE_NUM_THREADS=job.threads, **more
    )

    def generate(prompt: list[int], count: int) -> Generated:
        seconds: list[float] = []
        began = time.perf_counter()

        class Clock(openvino_genai.StreamerBase):  # type: ignore[misc]  # a class of C++
            def write(self, _token: Any) -> Any:
                seconds.append(time.perf_counter() - began)
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                """Nothing is left to note."""

        ids = numpy.array([prompt], dtype=numpy.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        config = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        return Generated(list(pipeline.generate(inputs, config, Clock()).tokens[0]), seconds)

    return generate


# onnxruntime-genai


def _to_onnxruntime(variant: str, checkpoint: Path, folder: Path) -> None:
    options = ["prune_lm_head=true", "shared_embeddings=true"]
    options += ["accuracy_level=4", "block_size=128"] if variant == "int8" else []
    _called(
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", folder, "-p", variant,
        "-e", "cpu", "-c", folder / "cache", "--extra_options", *options,
    )  # fmt: skip
    shutil.rmtree(folder / "cache", ignore_errors=True)


def _with_onnxruntime(folder: Path, _variant: str, job: Job) -> Generate:
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": job.threads}}}}))
    model = og.Model(config)

    def generate(prompt: list[int], count: int) -> Generated:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=_room(job), min_length=_room(job))

        def tokens() -> Iterable[int]:
            generator = og.Generator(model, params)
            generator.append_tokens(prompt)
            while True:
                generator.generate_next_token()
                yield generator.get_next_tokens()[0]

        return Generated.timed(tokens(), count)

    return generate


def _called(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}")


@dataclass(frozen=True)
class Engine:
    """How a checkpoint is converted for one system, and run by it."""

    run: Callable[[Path, str, Job], Generate]
    packages: tuple[str, ...]  # whose versions are written down
    convert: Callable[[str, Path, Path], None] | None = None  # None: it reads the checkpoint as it is


ENGINES = {
    "transformers": Engine(_with_transformers, ("transformers", "torch")),
    "safe_dtype": Engine(_with_safe_dtype, ("safe-dtype", "transformers", "torch", "llvmlite")),
    "llama.cpp, wheel": Engine(_with_llama_cpp_wheel, ("xllamacpp", "gguf"), _to_gguf),
    "llama.cpp, built here": Engine(_with_llama_cpp_built, ("llama-cpp-python", "gguf"), _to_gguf),
    "CTranslate2": Engine(_with_ctranslate2, ("ctranslate2",), _to_ctranslate2),
    "OpenVINO": Engine(_with_openvino, ("openvino", "openvino-genai", "optimum-intel"), _to_openvino),
    "onnxruntime-genai": Engine(_with_onnxruntime, ("onnxruntime-genai", "onnxruntime"), _to_onnxruntime),
}


def run(engine: Engine, folder: Path, variant: str, job: Job) -> dict[str, Any]:
    """Load, warm up, generate once, and return tokens, times and the peak of memory."""
    began = time.perf_counter()
    generate = engine.run(folder, variant, job)
    load_seconds = time.perf_counter() - began
    generate(job.prompt[::-1][:_WARM_UP], 3)
    generated = generate(job.prompt, job.new_tokens)
    return {
        "load_seconds": load_seconds,
        "prompt_seconds": generated.seconds[0],
        "token_seconds": statistics.median(later - sooner for sooner, later in pairwise(generated.seconds)),
        "tokens": generated.tokens,
        "peak_bytes": peak_bytes(),
        "versions": {name: _version(name) for name in engine.packages},
    }


def peak_bytes() -> int:
    """Return the peak of this process's resident memory, mapped files included. Linux."""
    written = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return 1024 * int(written[1]) if written else 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(action: str, *arguments: str) -> None:
    """Convert, or run and print what came of it."""
    engine, variant, *places = arguments
    how = ENGINES[engine]
    if action == "convert" and how.convert:
        how.convert(variant, *map(Path, places))
    if action == "run":
        folder, job = places
        results = run(how, Path(folder), variant, Job(**json.loads(Path(job).read_text(encoding="utf-8"))))
        sys.stdout.write(f"\n{json.dumps(results)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
