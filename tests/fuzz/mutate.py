"""Ways to change an input a little: its bytes, or the tree of values that it is made of."""

import copy
import functools
from collections.abc import Callable
from random import Random
from typing import Any

INTEGERS = [0, 1, -1, 7, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64]
ODD: list[Any] = [
    *INTEGERS, *(-n for n in INTEGERS), 10**40, None, True, False, 0.5, -0.0, 1e-300, 1e300,
    float("inf"), float("nan"), "", "a", "\0", "\x1b[2J", "\ud800", "a" * 200, "b" * 3000,
    [], {}, [[]], [0, 0, 0], {"": {}}, [1] * 300, "1e999", "../..", "F32", "I8", "BF16",
]  # fmt: skip


def nested(depth: int) -> list[Any]:
    """Make a list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Change, insert, remove or repeat a few stretches."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        at = random.randrange(len(changed) + 1)
        length = min(random.choice([1, 1, 2, 4, 8, 64, 1000]), len(changed) - at)
        piece = random.choice([
            random.randbytes(length),
            bytes([changed[at] ^ 1 << random.randrange(8)]) if length else b"",
            (random.choice(INTEGERS) % 2**64).to_bytes(8, random.choice(["little", "big"])),
            b"",
            bytes(changed[at : at + length]) * random.choice([2, 2, 30]),
            bytes([random.choice([0, 255])]) * length,
            bytes(changed[at : at + 1]) * random.choice([20, 5000]),
        ])  # fmt: skip
        changed[at : at + length] = piece
    return bytes(
        changed[: random.randrange(len(changed) + 1)] if random.random() < 0.1 else changed
    )


def places(tree: Any, put: Callable[[Any], None]) -> list[tuple[Any, Callable[[Any], None]]]:
    """List the values of a tree of lists and dictionaries, each with what replaces it."""
    found = [(tree, put)]
    for value, _ in found:  # which grows meanwhile
        if isinstance(value, dict | list):
            keys = list(value) if isinstance(value, dict) else range(len(value))
            found += [(value[key], functools.partial(value.__setitem__, key)) for key in keys]
    return found


def mutate_tree(random: Random, tree: Any) -> Any:
    """Put odd values into a tree, or remove, rename, repeat and nest some of its own."""
    holder = [copy.deepcopy(tree)]
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        found = places(holder[0], functools.partial(holder.__setitem__, 0))
        value, put = random.choice(found)
        match random.randrange(8):
            case 0 | 1 | 2:
                put(copy.deepcopy(random.choice(ODD)))
            case 3:
                put(copy.deepcopy(random.choice(found)[0]))
            case 4:
                put(nested(random.choice([1, 5, 20, 30])))  # more is mutate_bytes' matter
            case 5 if isinstance(value, int | float) and not isinstance(value, bool):
                put(
                    random.choice([-value, value * 2, value + 1, str(value), [value], float(value)])
                )
            case 6 if isinstance(value, dict) and value:
                key = random.choice(list(value))
                inner = value.pop(key)
                if random.random() < 0.5:
                    value[random.choice(["", "a" * 3000, f"{key}x", *value])] = inner
            case 7 if isinstance(value, list):
                put(value * random.choice([0, 2, 100]) if len(value) < 1000 else value[1:])
    return holder[0]
