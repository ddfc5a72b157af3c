"""The devices of this machine, and which of them a worker process gets (`workers.devices`)."""

from __future__ import annotations

import os
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"  # the GPUs of a process, by their numbers on the machine or ids

CPU = "cpu"  # a device of `workers.devices`: no GPU


def count_gpus() -> int:
    """Return the number of GPUs that torch can use in this process."""
    import torch

    return torch.cuda.device_count()


def find_device_faults(devices: Sequence[str], kind: str) -> list[str]:
    """Return a line for each device that this process does not have, or that `kind` cannot assign.

    Args:
        devices: `workers.devices`, numbers from 0, ids such as GPU-..., or CPU.
        kind: `workers.kind`.
    """
    shown = f"workers.devices=[{','.join(devices)}]"
    if devices and kind not in ("auto", "processes", "population"):
        expected = "expected workers.kind=processes or population"
        return [f"{shown} with workers.kind={kind}: {expected}"]
    named = (CPU, "GPU-", "MIG-")
    numbers = [device for device in devices if not device.startswith(named)]
    if not numbers:
        return []
    count = count_gpus()
    known = {str(number) for number in range(count)}
    missing = [device for device in numbers if device not in known]
    if not missing:
        return []
    has = f"GPUs 0 to {count - 1}" if count > 1 else "GPU 0 only" if count else "no GPU"
    return [
        f"{shown}: no device {', '.join(missing)}; torch finds {has} here"
        " (leave it empty for the devices that there are, or give cpu)"
    ]


def get_device_id(device: str) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES that gives a child process one of our devices.

    A number counts the GPUs that this process sees; these may be a part of those of the machine.
    """
    if device == CPU:
        return ""
    visible = [entry.strip() for entry in os.environ.get(VISIBLE, "").split(",") if entry.strip()]
    return visible[int(device)] if device.isdigit() and int(device) < len(visible) else device
