"""The number formats and block quantisers of NVFP4, defined in plain torch: what a kernel has to reproduce byte for byte.

    formats    E2M1 and E4M3 values, their rounding, packed bytes, the layout of block scales that matrix units read
    blocks     two-level scales over blocks of 16 or 16 x 16 values; four over six
    rotation   Hadamard transforms of 16 (fixed signs) and 128 (drawn signs) along the contracted dimension
    eden       MS-EDEN: rounding to nearest with unbiased, stochastically rounded block scales (Quartet II)
    draws      random bits as a pure function of key and counter (Philox4x32-10)
    product    the matrix product of two quantised matrices, every product of values exact
    operands   what emulation multiplies: values
    packed     what Blackwell's matrix units multiply: bytes; unverified on hardware

Every result is a function of the inputs alone: sums are trees of a fixed shape, no operation depends on the device or on the number
of threads. Matrices are (rows, columns) with blocks along columns, the contracted dimension of a product.
"""

from surogate_native_nvfp4.blocks import BLOCK, Blocks, quantise
from surogate_native_nvfp4.eden import quantise_eden
from surogate_native_nvfp4.product import product
from surogate_native_nvfp4.rotation import RHT_SIGNS, rotate

__all__ = ["BLOCK", "RHT_SIGNS", "Blocks", "product", "quantise", "quantise_eden", "rotate"]
