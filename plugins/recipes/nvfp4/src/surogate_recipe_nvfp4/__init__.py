"""4-bit training recipes for surogate: NVFP4 as NVIDIA trains with it, and Quartet II."""
