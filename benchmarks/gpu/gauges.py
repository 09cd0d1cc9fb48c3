"""The GPU's own gauges: clock, power, temperature."""

from __future__ import annotations

import importlib
import statistics
import subprocess
from typing import Any

import torch

QUERY = ("nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader,nounits", "--id=0")
NAMES = ("mhz", "watt", "celsius")


class Gauges:
    """Reads the gauges of the first GPU, through NVML if available: nvidia-smi takes half a second each time."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._nvml: Any = None
        self._handle: Any = None
        if self.on_gpu:
            try:
                self._nvml = importlib.import_module("pynvml")
                self._nvml.nvmlInit()
                self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
            except Exception:  # a missing library or an unknown driver: each raises a different error
                self._nvml = None

    @property
    def quick(self) -> bool:
        return self._nvml is not None

    def read(self) -> dict[str, float] | None:
        """Return MHz of the multiprocessors, W and degrees Celsius; None on a CPU, or if nothing reports them."""
        if not self.on_gpu:
            return None
        try:
            return dict(zip(NAMES, self._from_nvml() if self.quick else _from_smi(), strict=True))
        except Exception:  # an unsupported gauge must not end a measurement
            return None

    def _from_nvml(self) -> tuple[float, ...]:
        nvml, handle = self._nvml, self._handle
        return (
            float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        )


def _from_smi() -> tuple[float, ...]:
    told = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
    return tuple(float(part) for part in told.splitlines()[0].split(","))


def middle(readings: list[dict[str, float]]) -> dict[str, float] | None:
    """Return the median of each gauge; None without readings."""
    return {name: round(statistics.median(one[name] for one in readings), 1) for name in NAMES} if readings else None
