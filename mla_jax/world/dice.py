"""The world's only source of chance: integers that are the same on every platform and Python version."""

import random

_MASK = (1 << 64) - 1


def mix64(value: int) -> int:
    """One round of splitmix64 (Steele et al., 2014): a 64-bit integer in, a well-mixed one out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix_text(text: str) -> int:
    """A 64-bit fingerprint of a short text. `hash()` would differ from process to process."""
    value = len(text)
    for byte in text.encode("utf-8"):
        value = mix64(value ^ byte)
    return value


class Dice:
    """Integers drawn from one Mersenne twister seeded by an integer; `getrandbits` is stable by contract."""

    __slots__ = ("_bits",)

    def __init__(self, seed: int):
        self._bits = random.Random(seed).getrandbits

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), bound < 2**16 (the bias of the multiply is then below 2**-16)."""
        return (self._bits(32) * bound) >> 32

    def pick(self, options):
        """One element of a non-empty sequence."""
        return options[(self._bits(32) * len(options)) >> 32]

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 throws."""
        return (self._bits(32) * 100) >> 32 < percent

    def sample(self, options, count: int) -> list:
        """`count` different elements, in random order (partial Fisher-Yates on a copy)."""
        pool = list(options)
        for i in range(count):
            j = i + ((self._bits(32) * (len(pool) - i)) >> 32)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]
