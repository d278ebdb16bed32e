"""What to do about each error and warning of safe_dtype: the column of docs/errors.md that no docstring has."""

_BASE = "Catch it to catch all kinds below; each has its own cure."

CURES = {
    "SafeDtypeError": "Catch it to catch all of them. The message ends with what to do, after `Next:`.",
    "SafeDtypeWarning": (
        "Read it once: it names what to change in your call. `warnings.simplefilter('error', SafeDtypeWarning)` makes it an "
        "error, as for a job that must not go on."
    ),
    "UnknownDtypeError": (
        "Use `bfloat16`, `float16` or `float32`, or `bf16`, `fp16`, `fp32`. (`float8_e4m3fn`, `int8` and `int4` are formats of files, "
        "in which no model computes; weights in 8 or 4 bits: [`policy='int8'`](storage.md#eight-bits).)"
    ),
    "PolicyError": "The message names the word and how it is written. All words are in [Plan](plan.md#policies-say-what-you-want).",
    "DeviceError": "`safe-dtype doctor` shows the devices of this machine, and what was measured on each.",
    "NoSuchDeviceError": (
        "Pass one of the devices that the message lists. For a device that is elsewhere: `safe-dtype plan MODEL --device "
        "'NVIDIA Tesla T4'`."
    ),
    "UnknownDeviceError": (
        "`safe-dtype plan --list-devices` lists the known names; an architecture (`sm_75`, `gfx1030`) is one too. A product that "
        "is missing is [one row to add](extending.md#a-device)."
    ),
    "ProbeError": (
        "The message says what to set. A child process that did not start has last words, in the message: mend that (memory, most "
        "often), then `safe-dtype doctor --refresh` measures again. Where kernels kill the process: `SAFE_DTYPE_PROBE=child`, "
        "which is the default on devices that are known for it."
    ),
    "CheckpointError": (
        "Check the path, and that you may read it. A model without a tokenizer needs that of its base model. Weights that "
        "would stay random (with `strict`, else a warning): check `architectures` and `model_type` in its config.json, and "
        "that all of it was saved and downloaded."
    ),
    "CheckpointNotFoundError": (
        "Check the name and the revision. Without a network: `HF_HUB_OFFLINE=1` reads only what was downloaded before."
    ),
    "GatedCheckpointError": "Ask for access on the page of the model, then `hf auth login`.",
    "CorruptCheckpointError": "Download the file that it names again: `hf download ORG/NAME FILE --force-download`.",
    "MissingShardError": "Download it again, for an interrupted download leaves such a folder: `hf download ORG/NAME` fetches what is missing.",
    "UnsafeCheckpointError": "Ask its author for safetensors. Nothing of it was run.",
    "PlanError": _BASE,
    "NoSafeDtypeError": (
        "The message has one reason for each dtype, and what helps against it: most often a `ladder` in the policy leaves too "
        "little. For want of memory alone a model is spread instead: see [Not enough memory](memory.md)."
    ),
    "NothingFitsError": (
        "The message has the bytes of every way. Free memory, or take a smaller model: see "
        "[Not enough memory](memory.md)."
    ),
    "StrictModeError": "Order one of the dtypes that the message lists, or leave out `strict`.",
    "ConflictError": "Pass the value once: in the call, or in the plan.",
    "StalePlanError": "Make the plan again, or load without `plan=`. The message says what is another one now.",
    "NoPlanError": "Load the model with `SafeAutoModel.from_pretrained`, or under `safe-dtype run`.",
    "NotServableError": (
        "Serve what the message names, or leave out `--dtype`; see [vLLM](tools.md#vllm). `VLLM_PLUGINS=''` serves it all the "
        "same."
    ),
    "QuantizerPackageError": (
        "Install what it names, or load the model that it was quantized from. Which method runs where: "
        "[Quantized models](quantized.md)."
    ),
    "GuardError": f"{_BASE} The failure itself is its `__cause__`.",
    "NotGuardedError": "`safe_dtype.guard(model)`, or load it with `SafeAutoModel`.",
    "NoDtypeLeft": (
        "See the cause, and the attempts in the message. No room for float32: free memory, or `device_map='auto'`. The same in "
        "float32: look in weights and inputs; in training, lower the learning rate or clip gradients. A failure that should be "
        "cured: [write a report](#tell-us)."
    ),
    "CannotResumeError": "Call again: the model is in the next dtype already.",
    "DeviceLostError": (
        "Start the process again. Where the text blamed a dtype, the next start plans around it; else "
        "`CUDA_LAUNCH_BLOCKING=1` names the operation."
    ),
    "RescaleError": "Load it in another dtype: `dtype='bfloat16'` or `dtype='float32'`. Which would be fastest here: `safe-dtype plan MODEL`.",
    "TrainingError": _BASE,
    "HalfParametersError": (
        "`float32_masters(model, optimizer)` before the first step, or load with `dtype='float32'` and leave 16 bit to mixed "
        "precision."
    ),
    "NeedsRestart": (
        "Where a dtype has failed: start again from the last checkpoint with the `mixed_precision` that it names. Where nothing "
        "has failed yet: the message names what can be guarded in its place; without the guard it trains as it is."
    ),
    "NotSwitchableError": "The message names the line to change: most often something that was wrapped after `accelerator.prepare()`.",
    "TrainingDoesNotFitError": (
        "The message has the bytes, and a micro-batch that fits where there is one. Else LoRA, FSDP2, or `device_map='auto'`."
    ),
    "TrainingLoopError": "Write the loop as [A loop of one's own](training.md#a-loop-of-ones-own) has it: one window, one optimizer step.",
    "LaunchError": "The message names the option of `accelerate launch` to change. `--dry-run` shows what would be started.",
    "RanksError": _BASE,
    "PeerLostError": (
        "Look for the first error in the logs of all ranks, and start the job again. `safe-dtype launch` restarts all ranks "
        "together."
    ),
    "RanksDisagreeError": "Give every rank the same files, policy and plan: the message says who holds what.",
    "RemoteFailure": "Nothing is wrong with this rank: look at the log of the rank that it names.",
    "VerifyError": _BASE,
    "UnsteadyReferenceError": (
        "Call `model.eval()` where dropout is on, and compare logits, not sampled texts. A kernel that is not deterministic is named by "
        "`torch.use_deterministic_algorithms(True)`."
    ),
    "DegenerateReferenceError": "Check that the reference's weights were loaded, and take it in float32.",
    "IncomparableOutputsError": "Compare models of the same architecture, on the same batches in the same order.",
    "NothingToCompareError": "Pass at least one batch, and a text of a few sentences.",
    "OptimizeError": _BASE,
    "EnvironmentNotFitError": "The message names what to install or to free. The exit status is 5.",
    "NotOptimizableError": "The message names the input that cannot be made: pass it by `--inputs FILE` or `inputs=`.",
    "NotExportableError": "The message names what the format does not hold, and what writes it instead.",
    "BackupError": "Name another output folder. The original was not touched.",
    "NotRestorableError": "Nothing was written. Download the model again, or name the folder to restore to.",
    "NotOptimizedError": "`safe-dtype optimize MODEL --out DIR` makes it again.",
    "UntrustedFolderError": "If you know who made it: `load_optimized(folder, trust=True)`. Else make it here.",
    "PublishError": "The message says what others see now, and what to do. Running the same command again goes on where it ended.",
    "NotPublishableError": "Mend what it lists, or stage again. Nothing was sent.",
}
