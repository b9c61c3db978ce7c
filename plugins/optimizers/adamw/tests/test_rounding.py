from __future__ import annotations

import torch
from surogate_optimizer_adamw.rounding import step_generator, stochastic_round_

CPU = torch.device("cpu")


def rounded(source: torch.Tensor, seed: int = 0, step: int = 1) -> torch.Tensor:
    return stochastic_round_(torch.empty_like(source, dtype=torch.bfloat16), source, step_generator(CPU, seed, step))


def test_only_the_two_neighbours_and_the_mean_is_kept() -> None:
    """The published example: 1.0049062967 goes to 1 or 1.0078125, 1.00490 on average over 2e5 draws."""
    result = rounded(torch.full((200_001,), 1.0049062967)).float()
    assert result.unique().tolist() == [1.0, 1.0078125]
    spread = 0.0078125 / 2 / 200_001**0.5
    assert abs(result.double().mean() - 1.0049062967) < 4 * spread


def test_unbiased_for_both_signs_at_many_places_below_a_step() -> None:
    parts = torch.linspace(0, 1, 17)[1:-1] * 2**-7
    source = torch.cat([1 + parts, -(1 + parts)])[:, None].expand(-1, 40_000).contiguous()
    means = rounded(source, seed=3).double().mean(dim=1)
    assert (means - source[:, 0].double()).abs().max() < 5 * 2**-8 / 40_000**0.5


def test_values_of_bfloat16_infinities_and_nan_are_kept() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()]
    assert torch.equal(rounded(every.float()).view(torch.int16), every.view(torch.int16))
    nan = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1, 0x7F800001 - 2**31], dtype=torch.int32).view(torch.float32)
    assert all(rounded(nan, seed).isnan().all() for seed in range(8))


def test_the_generator_depends_on_seed_and_step_alone() -> None:
    source = torch.rand(1000)
    assert torch.equal(rounded(source, 5, 7), rounded(source, 5, 7))
    assert not torch.equal(rounded(source, 5, 7), rounded(source, 5, 8))
    assert not torch.equal(rounded(source, 5, 7), rounded(source, 6, 7))
    assert not torch.equal(rounded(source, 5, 7), rounded(source, 7, 5))


def test_any_two_values_are_rounded_independently() -> None:
    """Within the row of random numbers and across its repetitions: of 4,000 draws, the share that goes up together is that of two
    independent ones, and the variance of a whole tensor's mean is that of independent values."""
    source = torch.full((3 * 4096 + 5,), 1 + 0.25 * 2**-7)
    generator = step_generator(CPU, 0, 1)
    up = torch.stack(
        [stochastic_round_(torch.empty_like(source, dtype=torch.bfloat16), source, generator) > 1 for _ in range(4000)]
    )
    for one, other in ((0, 1), (0, 4096), (0, 4097), (4096, 8192), (5, 12288 + 4)):
        together = (up[:, one] & up[:, other]).double().mean()
        assert abs(together - 0.25**2) < 4 * (0.0625 * 0.9375 / 4000) ** 0.5
    variance = up.double().mean(dim=1).var() * len(source) / (0.25 * 0.75)
    assert abs(variance - 1) < 5 * (2 / 4000) ** 0.5
