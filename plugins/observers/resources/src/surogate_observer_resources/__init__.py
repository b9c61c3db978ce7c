"""What a step costs: peak memory, what NVML says of the GPU, milliseconds by part."""

__version__ = "0.1.0.dev0+src"
