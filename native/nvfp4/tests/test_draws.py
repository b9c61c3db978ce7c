from __future__ import annotations

import pytest
import torch
from surogate_native_nvfp4 import draws

STEP = torch.zeros((), dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_answers(counter: tuple[int, ...], key: tuple[int, int], wanted: str) -> None:
    """Random123's known answers for philox4x32-10."""
    found = draws.philox(tuple(torch.tensor([word]) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in found) == wanted


def test_words_are_those_of_their_counters_whatever_else_is_drawn() -> None:
    step = torch.tensor((7 << 32) + 3)
    many = draws.words(8 * draws.CHUNK, (1, 2), 9, step)
    assert torch.equal(draws.words(11, (1, 2), 9, step), many[:11])
    for index in (0, 1, draws.CHUNK, 2 * draws.CHUNK - 1):
        counter = tuple(torch.tensor([word]) for word in (index, 9, 3, 7))
        assert [int(word) for word in draws.philox(counter, (1, 2))] == many[4 * index : 4 * index + 4].tolist()


def test_streams_steps_and_keys_differ() -> None:
    found = [
        draws.words(64, key, stream, STEP + step)
        for key, stream, step in [((1, 2), 0, 0), ((1, 3), 0, 0), ((1, 2), 1, 0), ((1, 2), 0, 1), ((1, 2), 0, 1 << 32)]
    ]
    assert len({tuple(words.tolist()) for words in found}) == len(found)


def test_bits_and_signs_are_fair() -> None:
    bits = draws.bits16((33, 1001), (1, 2), 0, STEP)
    assert (bits.shape, bits.dtype) == ((33, 1001), torch.int32)
    assert int(bits.min()) >= 0
    assert int(bits.max()) < 65536
    assert float(bits.float().mean()) == pytest.approx(32767.5, abs=5 * 65536 / 12**0.5 / bits.numel() ** 0.5)
    signs = draws.signs(128 * 64, (1, 2), 0, STEP)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 5 / (128 * 64) ** 0.5
    words = draws.words(2, (1, 2), 0, STEP)
    assert bits.t().flatten()[:4].tolist() == [
        int(words[0]) & 0xFFFF,
        int(words[0]) >> 16,
        int(words[1]) & 0xFFFF,
        int(words[1]) >> 16,
    ]
