"""Seeded changes of valid examples: bytes and numbers of binary ones, words of those that are text."""

import random
import re
from collections.abc import Iterator, Sequence

from tests.property.mutations import damage

WORDS = [
    b"", b" ", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b"\xff", b"\xed\xa0\x80", b"\xc3\xb6", b'"', b"'", b"{", b"}", b"[", b"]", b"(", b")", b",", b":",
    b".", b"..", b"/", b"\\", b"-", b"=", b"@", b"007", b"0x10", b"[" * 2000, b'{"a":' * 2000, b'"\\ud800"',
]  # fmt: skip
"""What may stand anywhere, and breaks what stands there."""

VALUES = [
    b"0", b"1", b"2", b"-1", b"-0", b"1.0", b"1.5", b"1e3", b"1e999", b"255", b"256", b"65535", b"262144", b"262145", b"2147483648", b"4294967295",
    b"4611686018427387904", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"9" * 400,
    b"9" * 4290, b"9" * 5000, b"true", b"false", b"null", b'""', b"[]", b"{}", b'{"a":1}', b"[1]", b'"\\u0000"', b'"a"', b'".."', b'"a/b"',
    b'"' + b"ab" * 32 + b'"', b"ab" * 32, b"ab" * 20, b"[" * 900 + b"]" * 900, b"[" * 9000 + b"]" * 9000,
]  # fmt: skip
"""What may stand in place of a value."""

TOKENS = re.compile(rb'"[^"]{0,300}"|[0-9]+|[A-Za-z_]+|\s+|.', re.DOTALL)
_WIDTHS = (1, 2, 4, 8)
_MOST_BYTES = 1 << 16


class Mutator:
    """Gives inputs without end, the same ones for the same seed."""

    def __init__(self, examples: Sequence[bytes], rng: random.Random) -> None:
        self._examples = examples
        self._rng = rng
        self._tokens = [TOKENS.findall(example) if is_text(example) else None for example in examples]

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.next()

    def next(self) -> bytes:
        """Return an example with one to four changes."""
        rng = self._rng
        at = rng.randrange(len(self._examples))
        data, tokens = self._examples[at], self._tokens[at]
        kind = rng.random()
        if tokens is not None and kind < 0.8:
            return (self._revalue(list(tokens)) if kind < 0.45 else self._reword(list(tokens)))[:_MOST_BYTES]
        if kind > 0.97:
            other = rng.choice(self._examples)
            data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
        numbers = [(rng.randrange(len(data) - 8), rng.choice(_WIDTHS)) for _ in range(3)] if len(data) > 16 else ()
        return damage(data, rng, numbers)[:_MOST_BYTES]

    def _revalue(self, tokens: list[bytes]) -> bytes:
        """Return the text of an example with texts and numbers replaced: what is JSON stays JSON."""
        rng = self._rng
        places = [at for at, token in enumerate(tokens) if token[:1] == b'"' or token.isalnum()]
        for _ in range(rng.choice((1, 1, 1, 2, 3)) if places else 0):
            pool = [tokens[at] for at in places] if rng.random() < 0.5 else VALUES
            tokens[rng.choice(places)] = rng.choice(pool)
        return b"".join(tokens)

    def _reword(self, tokens: list[bytes]) -> bytes:
        """Return the text of an example with words replaced, left out, doubled, or put where there were none."""
        rng = self._rng
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(len(tokens) + 1)
            taken = rng.choice((0, 1, 1, 1, 2, 5))
            pool = rng.choice((WORDS, VALUES, tokens or WORDS))
            tokens[at : at + taken] = rng.choices(pool, k=rng.choice((0, 1, 1, 1, 2)))
        return b"".join(tokens)


def is_text(data: bytes) -> bool:
    """Return whether bytes are UTF-8 without control characters but white space."""
    try:
        return bool(data) and all(character.isprintable() or character.isspace() for character in data.decode())
    except UnicodeDecodeError:
        return False
