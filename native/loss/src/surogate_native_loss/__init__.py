"""Cross-entropy of rows of logits: loss and log-sum-exp of each row, and the gradient written over the logits, in one op.

It is defined in plain torch (``reference``) and has a CUDA kernel (``cuda/cross_entropy.cu``). The kernel is compiled for every
architecture and its body is run on the host in the tests; it has not been run on a GPU.
"""

from surogate_native_loss.ops import cross_entropy_  # noqa: F401
