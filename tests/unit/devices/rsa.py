"""Small RSA, enough to make a key that Google's client takes and to check what it signed. For tests only: seeded, slow."""

import base64
import random
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

_EXPONENT = 65537
_SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")
"""DER of the algorithm before a SHA-256. Source: RFC 8017, section 9.2."""


@dataclass(frozen=True)
class RsaKey:
    """A private key of 2048 bits."""

    p: int
    q: int

    def pem(self) -> str:
        """Return the key as PKCS#8. Source: RFC 5208, RFC 8017 A.1.2."""
        phi = (self.p - 1) * (self.q - 1)
        d = pow(_EXPONENT, -1, phi)
        numbers = (0, self.p * self.q, _EXPONENT, d, self.p, self.q, d % (self.p - 1), d % (self.q - 1))
        key = _der(0x30, b"".join(map(_integer, (*numbers, pow(self.q, -1, self.p)))))
        algorithm = _der(0x30, bytes.fromhex("06092a864886f70d0101010500"))
        text = base64.encodebytes(_der(0x30, _integer(0) + algorithm + _der(0x04, key))).decode()
        return f"-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n"

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether a signature (PKCS#1 v1.5, SHA-256) is this key's of a message."""
        n = self.p * self.q
        opened = pow(int.from_bytes(signature, "big"), _EXPONENT, n).to_bytes(256, "big")
        told = _SHA256_PREFIX + sha256(message).digest()
        return opened == b"\0\1" + b"\xff" * (253 - len(told)) + b"\0" + told


@cache
def make_key(seed: int = 1) -> RsaKey:
    """Return a key; the same for the same seed."""
    chance = random.Random(seed)
    p, q = sorted((_prime(chance), _prime(chance)), reverse=True)
    return RsaKey(p, q)


def _prime(chance: random.Random) -> int:
    while True:
        number = chance.getrandbits(1024) | (3 << 1022) | 1
        if all(number % small for small in (3, 5, 7, 11, 13)) and number % _EXPONENT != 1 and _is_prime(number, chance):
            return number


def _is_prime(number: int, chance: random.Random) -> bool:
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(20):
        x = pow(chance.randrange(2, number - 1), odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
