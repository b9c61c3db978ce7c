from __future__ import annotations

import pytest
import torch
from surogate_native_nvfp4 import RHT_SIGNS, draws, rotate
from surogate_native_nvfp4.rotation import signs_of
from torch import Tensor

CPU = torch.device("cpu")


def sylvester(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def test_the_fixed_signs_and_rows() -> None:
    assert "".join("+-"[sign < 0] for sign in RHT_SIGNS) == "+++-+------+-+--"
    matrix = rotate(torch.eye(16), signs_of(CPU)) * 4
    assert matrix[0].tolist() == [1.0] * 16
    assert matrix[3].tolist() == [-1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1]
    torch.testing.assert_close(matrix @ matrix.t(), 16 * torch.eye(16))
    assert torch.equal(matrix, torch.diag(signs_of(CPU)) @ sylvester(16))


@pytest.mark.parametrize(("size", "columns"), [(16, 64), (16, 50), (128, 256), (128, 200)])
def test_it_is_the_matrix_and_cancels_in_a_product(size: int, columns: int) -> None:
    signs = draws.signs(size, (3, 4), 5, torch.zeros((), dtype=torch.int64))
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(rows, columns, generator=generator) for rows in (24, 40))
    matrix = (torch.diag(signs) @ sylvester(size)).double() * size**-0.5
    padded = torch.zeros(24, -(-columns // size) * size, dtype=torch.float64)
    padded[:, :columns] = a
    rotated = rotate(a, signs)
    torch.testing.assert_close(rotated.double(), (padded.unflatten(1, (-1, size)) @ matrix).flatten(1), rtol=0, atol=2e-6)
    exact = a.double() @ b.double().t()
    found = rotated.double() @ rotate(b, signs).double().t()
    assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_the_bits_do_not_depend_on_the_other_rows() -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rotate(x, signs_of(CPU))[7:9], rotate(x[7:9], signs_of(CPU)))
