"""Damage to the bytes of a file, whatever it holds."""

from pathlib import Path

import numpy as np


def flip_bits(rng: np.random.Generator, file: Path, n: int = 1) -> None:
    content = bytearray(file.read_bytes())
    for where in rng.integers(0, len(content), n):
        content[where] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def flip_many_bits(rng: np.random.Generator, file: Path) -> None:
    flip_bits(rng, file, int(rng.integers(2, 200)))


def truncate(rng: np.random.Generator, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(rng.integers(0, len(content)))])


def lengthen(rng: np.random.Generator, file: Path) -> None:
    file.write_bytes(file.read_bytes() + rng.bytes(int(rng.integers(1, 5000))))


def swap_blocks(rng: np.random.Generator, file: Path) -> None:
    content = bytearray(file.read_bytes())
    size = int(min(2 ** rng.integers(3, 12), max(1, len(content) // 3)))
    a, b = (int(start) for start in rng.integers(0, len(content) - size + 1, 2))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    file.write_bytes(content)


def overwrite(rng: np.random.Generator, file: Path, filler: bytes = b"") -> None:
    content = bytearray(file.read_bytes())
    size = int(min(2 ** rng.integers(1, 12), len(content)))
    start = int(rng.integers(0, len(content) - size + 1))
    content[start : start + size] = filler * size or rng.bytes(size)
    file.write_bytes(content)


def zero_range(rng: np.random.Generator, file: Path) -> None:
    overwrite(rng, file, b"\0")


def fill_range(rng: np.random.Generator, file: Path) -> None:
    overwrite(rng, file, b"\xff")


KINDS = {
    "one bit flipped": flip_bits,
    "2 to 200 bits flipped": flip_many_bits,
    "truncated": truncate,
    "bytes added at the end": lengthen,
    "two blocks swapped": swap_blocks,
    "range of zeros": zero_range,
    "range of ones": fill_range,
    "range of random bytes": overwrite,
}
