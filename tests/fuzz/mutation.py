"""Inputs near valid ones: what a fuzzer feeds to a reader."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


def mutated(seeds: Sequence[bytes], tokens: Sequence[bytes], random: Random) -> bytes:
    """One of ``seeds`` with one to six changes; ``tokens`` are pieces that mean something."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 6)):
        start = random.randint(0, len(data))
        end = min(len(data), start + random.choice((1, 1, 2, 4, 8, 32)))
        kind = random.randrange(7)
        if kind == 0 and end > start:
            data[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[start:end] = random.randbytes(end - start)
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            data[start:start] = data[start:end] * random.randint(1, 3)
        elif kind == 4 and tokens:
            data[start : random.choice((start, end))] = random.choice(tokens)
        elif kind == 5:
            number = random.choice(NUMBERS).to_bytes(8, random.choice(("little", "big")))
            data[start:end] = number[: end - start]
        else:
            other = random.choice(seeds)
            at = random.randint(0, len(other))
            data[start:end] = other[at : at + random.choice((4, 16, 64))]
    return bytes(data)
