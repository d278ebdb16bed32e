"""What an optimization made, as one callable: the form where it works, the original where it fails."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from threading import RLock
from typing import Any

import torch
from safetensors import SafetensorError

from ...devices.accelerators import accelerators
from ...errors import NoSuchDeviceError, NotOptimizedError
from ...errors.warn import warn
from ...facts import Dtype
from ...guarding import guard, report, unguard
from ..attempts.load_model import apply_remedies, load_artifact, load_subject
from ..environment import files_in
from ..forms import find_form, form_named
from ..forms.generate import keep_compiled
from ..graphs.flat import outputs_of
from ..graphs.graph_breaks import reason_of
from ..nouns.form import BuildRequest, Run
from ..nouns.job import Job
from ..nouns.record import EAGER, FormAttempt, Optimization, Outcome
from ..nouns.record_file import read_record
from .compatibility import dynamic_of, hidden_row, misfit, showing_masks, traced_inputs, unlike
from .generate_calls import settings, unlike_compiled
from .kept_original import Sha256s, original_files, require_original
from .trust import require_paths, require_trust

logger = logging.getLogger(__name__)

Outputs = dict[str, torch.Tensor]

GIVEN_UP_AFTER = 3  # failing calls

_NOT_LOADED = (OSError, ValueError, KeyError, AttributeError, ImportError, UnpicklingError, SafetensorError)


def load_optimized(
    folder: str | Path,
    *,
    trust: bool = False,
    device: str | torch.device | None = None,
    attempt: int | None = None,
) -> Optimized:
    """Return the form that an optimization chose, ready to be called.

    A form that cannot be used here (another version of torch, another device) is no error: eager takes its place, with
    a warning, and `fell_back` says why. Forms without a file are built by the first call.

    Args:
        folder: The output folder of the optimization.
        trust: Whether to load code that was not made on this machine: whoever made it decides what it does.
        device: Where to run; None: where it was optimized. A form that is a file runs on that device only.
        attempt: Another attempt than the chosen one, by its number in the report: one that was verified and kept.

    Raises:
        NotOptimizedError: If the folder holds no form to load, or not what its record says.
        UntrustedFolderError: If loading it would run code that was not made here. Nothing was loaded.
        NoSuchDeviceError: If the device is not here.
    """
    folder = Path(folder)
    record = read_record(folder)
    require_paths(folder, record)
    chosen = _chosen(folder, record, attempt)
    if _leaves_a_file(chosen):
        _require_listed(folder, chosen)
        require_trust(folder / chosen.artifact, chosen.artifact_files, trust=trust)
    files = original_files(folder, record)
    if not record.model_class:
        # Every form may fall back to the original: its trust is checked now, and not in the middle of a call.
        require_trust(folder, files, trust=trust)
    return Optimized(folder, record, chosen, _device(device, record), files)


class Optimized:
    """A form of a model: `optimized(**inputs)` takes the model's keyword inputs, and returns its outputs by name.

    Float inputs are cast to the form's dtype, and tensors are brought to its device. Where the form raises, or answers
    NaN or infinity where eager does not, the call is answered by eager on the original weights, in the same dtype and
    guarded: from the very files that were optimized, by their hashes; where those were changed, a call that needs eager
    raises NotOptimizedError. After `GIVEN_UP_AFTER` such calls, or when it cannot be loaded or built at all, the form is given up for
    good. Inputs that it was not made for (other names, sizes beyond its ranges, a mask that hides a row whole
    where no verified one did) go straight to eager, and do not count
    as failures. Each kind of fallback is warned of once. Where eager raises as well, its error is raised.

    Safe to call from several threads: they compute at the same time, and one of them loads or builds.

    Attributes:
        record: What the optimization found.
        attempt: The attempt that was loaded.
        device: Where it runs.
        fell_back: Why eager last answered in place of the form; empty where it never did.
        given_up: Whether eager answers every call from now on.
    """

    def __init__(
        self, folder: Path, record: Optimization, attempt: FormAttempt, device: str, original: Sha256s
    ) -> None:
        self.record, self.attempt, self.device = record, attempt, device
        self.fell_back, self.given_up = "", False
        self._folder, self._original_files = folder, original
        self._dynamic = dynamic_of(record)
        # A form without a file compiles again by itself for other inputs.
        self._traced = traced_inputs(record) if _leaves_a_file(attempt) else {}
        self._showing = showing_masks(record)
        self._run: Run | None = None
        self._model: torch.nn.Module | None = None
        self._failures = 0
        self._masked: set[str] = set()  # outputs in which eager itself answers -inf
        self._told: set[str] = set()
        self._lock = RLock()
        if reason := misfit(record, attempt, device):
            self._give_up("misfit", f"{self._named} cannot be used here: {reason}")
        elif _leaves_a_file(attempt):
            self._load()

    @property
    def form(self) -> str:
        """The name of the form that was loaded, even after it was given up."""
        return self.attempt.form

    @property
    def dtype(self) -> Dtype:
        """The dtype of the form, and of eager until its guard changes it."""
        return self.attempt.dtype

    def __repr__(self) -> str:
        now = f", now eager: {self.fell_back}" if self.given_up else ""
        return f"<Optimized {self.record.source} as {self._named} on {self.device}{now}>"

    def __call__(self, **inputs: Any) -> Outputs:
        """Return the outputs by name, dotted where they are nested, each in its dtype; without gradients."""
        placed = self._placed(inputs)
        with torch.no_grad():
            if self.form == EAGER or self.given_up or self._serves_generate:
                return self._eagerly(placed)
            if reason := unlike(placed, self._traced, self._dynamic) or hidden_row(placed, self._showing):
                outputs = self._eagerly(placed)
                self._fall_back("inputs", f"{self._named} was not made for such inputs: {reason}")
                return outputs
            outputs, failure = self._in_form(placed)
            if failure:
                logger.info("%s; eager runs on the same inputs", failure)
                outputs = self._eagerly(placed)  # where it raises, too, that is the caller's mistake
                self._count("raised", failure)
            elif names := self._broken(outputs):
                expected = self._eagerly(placed)
                if worse := [name for name in names if self._is_worse(name, outputs, expected)]:
                    failure = f"{self._named} answered NaN or infinity in {', '.join(worse)} where eager does not"
                    self._count("not finite", failure)
                    return expected
            return outputs

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `generate` of transformers returns for these arguments, guarded step by step.

        Where the form is "generate", each new token is computed by its compiled step. A step that fails goes on eagerly,
        from that very step, and the form is given up. Calls that it was not made for (more rows or longer texts, beams,
        a cache of the caller's) are eager's, with a warning, and so are all where the form is another one.

        Raises:
            NotOptimizedError: If the original does not generate, cannot be loaded, or is no longer what was optimized.
        """
        model: Any = self.eager()
        if not hasattr(model, "generate"):
            raise NotOptimizedError(str(self._folder), f"a {type(model).__name__} has no generate")
        if not self._serves_generate or self.given_up:
            return model.generate(*args, **kwargs)
        if reason := unlike_compiled(model, self.record, args, kwargs):
            self._fall_back("inputs", f"{self._named} was not made for such a call: {reason}")
            return model.generate(*args, **kwargs)
        keep_compiled()
        before = len(report(model).events)
        output = model.generate(*args, **kwargs, **settings(model, self.record, self.device))
        if failed := report(model).events[before:]:
            with self._lock:
                self._give_up("generate", f"{self._named} failed, and the text went on eagerly ({failed[0]})")
        return output

    def eager(self) -> torch.nn.Module:
        """Return the original in the form's dtype, loaded on first use; guarded where it is a model of transformers.

        Raises:
            NotOptimizedError: If it cannot be loaded, or is no longer what was optimized.
        """
        with self._lock:
            if self._model is None:
                self._model = self._original()
            return self._model

    @property
    def _serves_generate(self) -> bool:
        form = find_form(self.form)
        return form is not None and form.serves_generate

    @property
    def _named(self) -> str:
        return f"{self.form} in {self.dtype}"

    def _placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        dtype = getattr(torch, self.dtype.name)

        def placed(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            # Contiguous, as the traced batch was: native code uses the strides that it was made with.
            return value.detach().to(self.device, dtype if value.is_floating_point() else value.dtype).contiguous()

        return {name: placed(one) for name, one in inputs.items()}

    def _in_form(self, inputs: Mapping[str, Any]) -> tuple[Outputs, str]:
        """Return the form's answer, and an empty text; or why there is none."""
        doing = "be built"
        try:
            run = self._ready(inputs)
            doing = "run"
            return dict(run(**inputs)), ""
        except (Exception, SystemExit) as exc:  # noqa: BLE001  # eager decides whether the form or the caller is to blame
            # As text: an exception keeps its frames, and with them memory that eager may need.
            return {}, f"{self._named} could not {doing} ({_words(exc)})"

    def _ready(self, inputs: Mapping[str, Any]) -> Run:
        with self._lock:
            if self.given_up:  # by another thread, meanwhile
                return lambda **inputs: self._eagerly(inputs)
            if self._run is None:
                self._run = self._built(inputs)
            return self._run

    def _built(self, inputs: Mapping[str, Any]) -> Run:
        """Build a form that has no file, on a copy of the model: eager stays as it is."""
        model = eager_twin(self.eager())
        apply_remedies(model, self.attempt.remedies)
        request = BuildRequest(model, inputs, self._folder, self._dynamic, self.attempt.regions)
        return form_named(self.form).build(request)

    def _load(self) -> None:
        artifact = self._folder / self.attempt.artifact
        try:
            self._run = load_artifact(form_named(self.form), artifact, self.record.model_class)
        except (Exception, SystemExit) as exc:  # noqa: BLE001  # whatever the runtime raises, eager takes over
            self._give_up("load", f"{self._named} could not be loaded ({_words(exc)})")

    def _eagerly(self, inputs: Mapping[str, Any]) -> Outputs:
        return outputs_of(self.eager()(**inputs))

    def _original(self) -> torch.nn.Module:
        folder, record = self._folder, self.record
        if record.model_class:
            _require_model_class(folder, record.model_class)
        # Now, and not when the form was loaded: the files may be changed in between, and most forms never need them.
        require_original(folder, record, self._original_files)
        job = Job(
            folder / record.original,
            record.model_class,
            self.dtype,
            self.form,
            folder,
            folder,
            loaded_with=record.loaded_with,
            device=self.device,
        )
        try:
            model = load_subject(job)
        except _NOT_LOADED as exc:  # what damaged files raise; other errors, of memory for example, are not caught
            why = f"the original cannot be loaded from {record.original} ({_words(exc)})"
            raise NotOptimizedError(str(folder), why) from exc
        if self._serves_generate:
            apply_remedies(model, self.attempt.remedies)
        return guard(model) if record.model_class else model

    def _broken(self, outputs: Outputs) -> list[str]:
        """Return the outputs with NaN or infinity; -inf does not count in an output where eager has it, too."""
        names = [name for name, one in outputs.items() if one.numel() and one.is_floating_point()]
        # One pass over each, in which NaN wins: twelve times as fast as isfinite().all() on the CPU, measured on 65
        # million numbers in bfloat16. Brought to the host at once: one wait for the device, not one per output.
        ends = [torch.stack(torch.aminmax(outputs[name].detach())).float() for name in names]
        extremes = torch.stack(ends).tolist() if ends else []
        return [
            name
            for name, (low, high) in zip(names, extremes, strict=True)
            if not (high < math.inf and (low > -math.inf or name in self._masked))
        ]

    def _is_worse(self, name: str, outputs: Outputs, expected: Outputs) -> bool:
        answer, right = outputs[name], expected.get(name)
        if right is None or right.shape != answer.shape:
            return True
        if bool(right.isneginf().any()):
            self._masked.add(name)
        return bool((right.isfinite() & ~answer.isfinite()).any())

    def _count(self, kind: str, failure: str) -> None:
        """Count a call that failed; give the form up where it could not be built, or failed too often."""
        with self._lock:
            self._failures += 1
            if self._run is None:
                self._give_up("build", failure)
            elif self._failures >= GIVEN_UP_AFTER:
                self._give_up("calls", f"{failure}; that was failure {self._failures}, and the form is given up")
            else:
                self._fall_back(kind, failure)

    def _give_up(self, kind: str, reason: str) -> None:
        self.given_up, self._run = True, None
        self._tell(kind, reason, "Eager on the original weights answers every call", "make it again on this machine")

    def _fall_back(self, kind: str, reason: str) -> None:
        self._tell(kind, reason, "Eager on the original weights answered", "make it again with such inputs held out")

    def _tell(self, kind: str, reason: str, instead: str, advice: str) -> None:
        with self._lock:
            self.fell_back = reason
            new = kind not in self._told
            self._told.add(kind)
        logger.info("%s. %s", reason, instead, extra={"form": self.form, "dtype": self.dtype.name, "kind": kind})
        if new:
            text = f"{reason}. {instead}. Next: {advice} (`safe-dtype optimize`). This is said once."
            warn(text)


def _chosen(folder: Path, record: Optimization, number: int | None) -> FormAttempt:
    number = record.chosen if number is None else number
    if number is None:
        raise NotOptimizedError(str(folder), f"no form was chosen: {record.why or 'the record does not say why'}")
    if not 0 <= number < len(record.attempts):
        raise NotOptimizedError(str(folder), f"there is no attempt {number}, they are 0 to {len(record.attempts) - 1}")
    attempt = record.attempts[number]
    if attempt.outcome is not Outcome.VERIFIED:
        raise NotOptimizedError(
            str(folder), f"attempt {number} ({attempt.form} in {attempt.dtype}) is {attempt.outcome}"
        )
    if _leaves_a_file(attempt) and not (attempt.artifact and (folder / attempt.artifact).is_dir()):
        raise NotOptimizedError(str(folder), f"the files of attempt {number} were not kept")
    return attempt


def _leaves_a_file(attempt: FormAttempt) -> bool:
    form = find_form(attempt.form)
    return form is not None and form.leaves_a_file


def _require_listed(folder: Path, attempt: FormAttempt) -> None:
    """Raise where the artifact's folder holds other files than the record lists: what is not hashed is not loaded."""
    try:
        there = set(files_in(folder / attempt.artifact)) if attempt.artifact else set()
    except OSError as exc:
        raise NotOptimizedError(str(folder), f"{attempt.artifact} cannot be read ({exc})") from None
    if added := sorted(there - attempt.artifact_files.keys()):
        raise NotOptimizedError(
            str(folder), f"{attempt.artifact} holds files that the record does not list: {', '.join(added)}"
        )
    if missing := sorted(attempt.artifact_files.keys() - there):
        raise NotOptimizedError(str(folder), f"{attempt.artifact} lacks {', '.join(missing)}")
    if not there:
        raise NotOptimizedError(str(folder), f"the record lists no files of {attempt.form} in {attempt.dtype}")


def _require_model_class(folder: Path, name: str) -> None:
    """Raise where `name` is no model of transformers: a record must not name anything else that can be called."""
    import transformers

    model_class = getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise NotOptimizedError(str(folder), f"this transformers ({transformers.__version__}) has no model {name!r}")


def _device(asked: str | torch.device | None, record: Optimization) -> str:
    name = str(asked or record.device)
    here = ("cpu", *(one.device for one in accelerators()))
    if name not in here and name not in {one.partition(":")[0] for one in here}:
        raise NoSuchDeviceError(name, here)
    return name


def eager_twin(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy without a guard. It shares the memory of the weights, but not the parameters themselves.

    So it costs no memory, and does not change when a guard casts `model`.
    """
    parameters = {id(one): torch.nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()}
    twin = copy.deepcopy(model, {**parameters, **{id(one): one.detach() for one in model.buffers()}})
    unguard(twin)
    return twin


def _words(exc: Exception | SystemExit) -> str:
    return f"{type(exc).__name__}: {reason_of(exc)}"
