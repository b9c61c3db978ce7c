"""The orthogonal factor of a matrix by five matrix polynomials, "Polar Express" (Amsel et al., arXiv 2505.16932).

For X = U S V^T the iteration X <- a X + (b A + c A^2) X with A = X X^T changes the singular values alone, s <- a s + b s^3 + c s^5.
The coefficients are the paper's for five steps, with its cushion of 2 and safety factor of 1.02. Singular values between 0.001 and
1 end between 0.858 and 1.142.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SAFETY = 1.02


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, m, n) → (B, m, n) in ``dtype``, in which the products are computed. A matrix of zeros stays zero; the scale of a matrix
    has no effect, however small (the paper adds 1e-6 to the norm)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = (x / (SAFETY * norm).clamp_min(torch.finfo(norm.dtype).tiny)).to(dtype)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x
