"""Functions compiled by LLVM, once for each CPU: the code is remembered, and later processes load it in 3 ms."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..numerics.pages import give_back_library
from ..store.remembered import Key, file_of, recall, remember
from .target import CompileTarget, llvm, target

logger = logging.getLogger(__name__)

_lock = threading.RLock()


class _Forked:
    """Whether this process was forked while another thread was in LLVM: nobody gives its locks back here."""

    amid_llvm = False


_addresses: dict[Hashable, int | None] = {}
_engines: list[Any] = []  # what an engine has loaded goes with it


class Kernel:
    """The functions of one kernel, one for each kind of numbers that it works on: found once, and refused in the same words.

    Args:
        function: The name that each has in its module.
        written_by: What writes that module: as of `address_of`.
        what: What is computed, in words, with a place for each part of a kind: "products of {} by {}".
        parameters: Returns what the module is written from, for a kind; None where there is no code for it on this CPU.
    """

    __slots__ = ("_addresses", "_function", "_parameters", "_what", "_written_by")

    def __init__(
        self, function: str, written_by: str, what: str, parameters: Callable[..., Iterable[str] | None]
    ) -> None:
        self._function, self._written_by, self._what, self._parameters = function, written_by, what, parameters
        self._addresses: dict[tuple[Any, ...], int | None] = {}

    def has(self, *kind: Any) -> bool:
        """Whether there is code for a kind on this machine; it is compiled now where it was not before."""
        return self._find(kind) is not None

    def address(self, *kind: Any) -> int:
        """Return the address of the function for a kind.

        Raises:
            RuntimeError: If there is no code for it on this machine.
        """
        address = self._addresses.get(kind) or self._find(kind)  # asked for 200 times a token
        if address is None:
            raise RuntimeError(f"no {self._what.format(*kind)} are compiled here")
        return address

    def _find(self, kind: tuple[Any, ...]) -> int | None:
        if kind not in self._addresses:
            parameters = self._parameters(*kind)
            known = None if parameters is None else address_of(self._function, self._written_by, *parameters)
            self._addresses[kind] = known
        return self._addresses[kind]


def address_of(function: str, written_by: str, *parameters: str) -> int | None:
    """Return the address of a compiled function; it is compiled where no process has done that for this CPU before.

    Args:
        function: Its name in the module that is compiled.
        written_by: What writes that module in LLVM's own language: a function of this room, in a file of its name, as
            `folder.name` in a folder of it. What it writes depends on its parameters alone, and calls nothing outside of
            it. The code is remembered under its name, these and the sources of the room.
        parameters: Its arguments.

    Returns:
        None where nothing can be compiled here.
    """
    cpu = target()
    key = (function, written_by, parameters, cpu)
    if key not in _addresses:
        if _Forked.amid_llvm:
            return None
        with _lock:
            if key not in _addresses:
                _addresses[key] = None if cpu is None else _loaded_if_possible(function, written_by, parameters, cpu)
    return _addresses[key]


def _loaded_if_possible(function: str, written_by: str, parameters: tuple[str, ...], cpu: CompileTarget) -> int | None:
    try:
        return _loaded(function, written_by, parameters, cpu)
    except RuntimeError as exc:  # of LLVM: it knows of no such machine, or cannot write for it
        logger.warning("%s is not compiled for %s (%s): torch's own is called", function, cpu.triple, exc)
        return None


def _loaded(function: str, written_by: str, parameters: tuple[str, ...], cpu: CompileTarget) -> int | None:
    binding = llvm()
    if binding is None:
        return None
    machine = _machine(binding, cpu)
    key = _key(written_by, parameters, cpu)
    code = recall(key, _read) if _is_ours(file_of(key)) else None
    if code is None:
        write = getattr(import_module(f".{written_by}", __package__), written_by.rpartition(".")[2])
        code = _compiled(binding, machine, write(*parameters))
        remember(key, {"code": base64.b64encode(code).decode()})
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = int(engine.get_function_address(function)) or None
    # Loading remembered code reads 46 MB of the library, compiling it 72 MB, and running it none.
    give_back_library(Path(binding.__file__).resolve().parent / "libllvmlite.so")
    return address


def _machine(binding: Any, cpu: CompileTarget) -> Any:
    made_for = binding.Target.from_triple(cpu.triple)
    return made_for.create_target_machine(
        cpu=cpu.cpu, features=cpu.features, opt=3, reloc="pic", codemodel="jitdefault"
    )


def _compiled(binding: Any, machine: Any, text: str) -> bytes:
    module = binding.parse_assembly(text)
    module.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    code: bytes = machine.emit_object(module)
    return code


def _key(written_by: str, parameters: tuple[str, ...], cpu: CompileTarget) -> Key:
    return {
        "kernel": written_by,
        "parameters": list(parameters),
        "cpu": cpu.cpu,
        "triple": cpu.triple,
        "features": cpu.features,
        "llvm": cpu.llvm,
        "sources": sources_digest(),
    }


def _read(values: Mapping[str, Any]) -> bytes:
    if not values.get("digest"):  # checked where there is one; damaged code would end the process
        raise ValueError("code without a digest")
    return base64.b64decode(values["code"], validate=True)


def _is_ours(file: Path) -> bool:
    """Whether nobody but this user and root can have written a file: what is in it will be run."""
    if not hasattr(os, "getuid"):
        return True
    try:
        return all(
            status.st_uid in (0, os.getuid())
            and not status.st_mode & stat.S_IWOTH
            and not (status.st_mode & stat.S_IWGRP and _has_others(status.st_gid))
            for status in (file.stat(), file.parent.stat())
        )
    except OSError:
        return False


def _has_others(group: int) -> bool:
    """Whether a group may have other users than this one and root in it. Many systems give each user a group of its own."""
    if sys.platform == "win32" or group == 0:
        return False
    import grp
    import pwd

    try:
        own, members = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return True
    return members.gr_name != own.pw_name or not {own.pw_name}.issuperset(members.gr_mem)


def sources_digest() -> str:
    """Return a digest of everything in this room: any of it may change what is compiled, and how fast that is."""
    if not _digest:
        texts = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))]
        _digest.append(hashlib.sha256(b"\0".join(texts)).hexdigest())
    return _digest[0]


_digest: list[str] = []


def _after_fork() -> None:
    if _lock.acquire(blocking=False):
        _lock.release()
    else:
        _Forked.amid_llvm = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
