"""`safe-dtype plan --list-devices`: what is known without being here."""

from __future__ import annotations

from command_run import Run

from safe_dtype.devices import prior_facts
from safe_dtype.devices.priors import known_products


def test_list_devices(run: Run) -> None:
    """Every known product is listed under its maker, with its memory and what is native, and no model is needed."""
    done = run("plan", "--list-devices")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "NVIDIA Tesla T4 16 GB float16" in lines
    assert "NVIDIA Tesla P40 24 GB float32 alone" in lines
    assert "NVIDIA Tesla K80 12 GB float32 alone" in lines
    assert "Apple M2 varies float16" in lines
    assert "AMD Radeon RX 7900 XTX 24 GB bfloat16, float16?" in lines
    assert "NVIDIA H100 80 GB bfloat16, float16" in lines
    for group in ("NVIDIA", "AMD", "Intel", "Apple (GPU)", "CPUs", "Others"):
        assert any(line.startswith(f"{group} memory native") for line in lines)
    assert "Raspberry Pi 5" in done.stdout


def test_every_listed_name_is_a_device() -> None:
    """What is listed can be passed as --device."""
    for product in known_products():
        assert prior_facts(product.device).verdicts == product.verdicts, product.device
