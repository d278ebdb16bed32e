"""oneDNN is off in a block, and afterwards what it was."""

from __future__ import annotations

import threading

import pytest
import torch

from safe_dtype.numerics.onednn import is_in_use, onednn_off

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def test_as_it_was() -> None:
    """Where it was off it stays off; blocks inside of blocks, and in two threads, turn it back once."""
    with onednn_off():
        with onednn_off():
            pass
        assert not is_in_use()
    assert is_in_use()
    inside, out = threading.Event(), threading.Event()

    def other() -> None:
        with onednn_off():
            inside.set()
            out.wait()

    thread = threading.Thread(target=other)
    with onednn_off():
        thread.start()
        inside.wait()
    assert not is_in_use()
    out.set()
    thread.join()
    assert is_in_use()
    torch._C._set_mkldnn_enabled(False)
    try:
        with onednn_off():
            pass
        assert not is_in_use()
    finally:
        torch._C._set_mkldnn_enabled(True)
