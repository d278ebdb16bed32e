"""receipt.json beside a staged folder: how far its publication has come, for a later run and for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import NotPublishableError, PublishError
from ...store import write_whole
from ..release import SCHEMA, Receipt, State, Target


def receipt_path(folder: Path) -> Path:
    """Return where the receipt of a staged folder is: beside it, since all that is inside is published."""
    whole = folder.resolve()
    return whole.with_name(f"{whole.name}.receipt.json")


def read_receipt(folder: Path) -> Receipt | None:
    """Return the receipt of a staged folder, None where it was never pushed.

    Raises:
        NotPublishableError: If there is one that cannot be read.
    """
    file = receipt_path(folder)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ValueError(record["schema"])
        return Receipt.from_dict(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        happened = f"{file} is no receipt of this version ({type(exc).__name__})"
        advice = "remove it: what is on the Hub is compared by content anyway"
        raise NotPublishableError(str(State.NOT_STARTED), str(folder), happened, "unknown", advice) from exc


def receipt_for(folder: Path, target: Target) -> Receipt | None:
    """Return the receipt of a staged folder where it is about this very repository and revision."""
    receipt = read_receipt(folder)
    here = (target.repo, target.revision)
    return receipt if receipt is not None and (receipt.target.repo, receipt.target.revision) == here else None


class Journal:
    """The receipt of a publication under way, written down before every step that others could see."""

    def __init__(self, folder: Path, receipt: Receipt) -> None:
        self._file, self.receipt = receipt_path(folder), receipt

    def note(self, state: State, **facts: Any) -> Receipt:
        """Write down a state, at once or not at all. Not forced to the disk: what the Hub holds is what counts.

        Raises:
            PublishError: If it cannot be written. Nothing that it announces was done.
        """
        now = replace(self.receipt, state=state, **facts)
        try:
            write_whole(self._file, json.dumps(now.to_dict(), indent=2) + "\n")
        except OSError as exc:
            happened = f"the receipt {self._file} cannot be written ({exc.strerror})"
            visible = "what the last receipt says" if self.receipt.oid else "what was there before"
            before = str(self.receipt.state)
            raise PublishError(before, str(now.target), happened, visible, "see to the disk, then push again") from exc
        self.receipt = now
        return now

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Write down the state of every PublishError that comes out of the block.

        Not where nothing was started: what an earlier run wrote down still holds then.
        """
        try:
            yield
        except PublishError as exc:
            if (state := State(exc.state)) is not State.NOT_STARTED:
                self.note(state, note=exc.happened)
            raise
