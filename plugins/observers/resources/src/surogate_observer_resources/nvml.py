"""What NVML says of one GPU. The library is the driver's; ``pynvml`` (nvidia-ml-py) only calls it."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen
class Gauge:
    handle: Any

    def read(self) -> dict[str, float]:
        """``util`` and ``memory_util`` in %, ``memory`` in bytes (all processes), ``watts``, ``celsius``; what a GPU does not
        tell is left out."""
        import pynvml

        def util() -> dict[str, float]:
            rates = pynvml.nvmlDeviceGetUtilizationRates(self.handle)
            return {"util": float(rates.gpu), "memory_util": float(rates.memory)}

        readings = (
            util,
            lambda: {"memory": float(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used)},
            lambda: {"watts": pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1000},
            lambda: {"celsius": float(pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU))},
        )
        told: dict[str, float] = {}
        for reading in readings:
            try:
                told.update(reading())
            except pynvml.NVMLError:  # not supported by this GPU or in this container
                continue
        return told


def gauge(device: str) -> tuple[Gauge | None, str]:
    """The gauge of the GPU that torch computes on, or None and why there is none."""
    if device != "cuda":
        return None, "this run computes on the CPU"
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return Gauge(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")), ""
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
