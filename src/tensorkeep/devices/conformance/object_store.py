"""Probes of an object store over plain HTTP: what its device's calls hide, or would not ask."""

import base64
import hashlib
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Literal

from tensorkeep.devices.conformance.judging import (
    Answer,
    CreateRound,
    create_flag,
    judge_clock,
    judge_range,
    judge_range_beyond,
    judge_torn_upload,
    swap_flag,
)
from tensorkeep.devices.conformance.objects import RACERS, ROUNDS, SHORT_ROUNDS
from tensorkeep.devices.conformance.probe import Finding, RawStore, Refused, Site, refuse
from tensorkeep.errors import Internal, PermissionDenied, Unavailable
from tensorkeep.records.layout import BLOCK_BYTES

_PROMISED_BYTES = 1_000_000
_SENT_BYTES = 300_000
_SECOND_LOOK_S = 0.2
_ATTEMPTS = 4
_ABSENT = 404
_BUSY = frozenset({429, 500, 502, 503, 504})


def clock(site: Site) -> Finding:
    """How far the store's clock is from this machine's."""
    before = site.runtime.clock.now().timestamp()
    answer = _raw(site).request("HEAD", site.part_name())
    now_s = (before + site.runtime.clock.now().timestamp()) / 2
    try:
        told_s = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except ValueError:
        return Finding("the store does not tell its time")
    # The header has whole seconds, cut off.
    offset_s = round(told_s + 0.5 - now_s)
    refuse(judge_clock(offset_s), PermissionDenied)
    return Finding(f"its clock is {offset_s:+d} s from this machine's", {}, {"clock_offset_s": offset_s})


def http_ranges(site: Site) -> Finding:
    """A range is answered with 206, the right Content-Range and its bytes; past the end with what there is."""
    data = site.runtime.randomness.random_bytes(BLOCK_BYTES + 7)
    size = len(data)
    name = site.part_name()
    site.device.put(name, [data])
    for start, end in (
        (0, 100),
        (BLOCK_BYTES // 2, BLOCK_BYTES // 2 + 5000),
        (size - 100, size),
        (size - 10, size + 100),
    ):
        refuse(judge_range(start, end, _get_range(site, name, start, end), data))
    refuse(judge_range_beyond(_get_range(site, name, size, size + 100)))
    return Finding("ranges are answered with 206 and the right bytes; none beyond the end")


def torn_upload(site: Site) -> Finding:
    """An upload that breaks off leaves nothing, and what was there before as it was."""
    data = site.runtime.randomness.random_bytes(_SENT_BYTES)
    fresh, replaced = site.part_name(), site.part_name()
    before: dict[str, bytes | None] = {fresh: None, replaced: b"what was there before"}
    _put(site, replaced, b"what was there before")
    for name in before:
        _raw(site).break_off(name, data, _PROMISED_BYTES)
    for pause_s in (0.0, _SECOND_LOOK_S):
        site.runtime.clock.sleep(pause_s)
        for name, old in before.items():
            refuse(judge_torn_upload(_SENT_BYTES, _PROMISED_BYTES, _find(site, name), old))
    if fresh in [info.name for info in site.other.iter_objects("parts/")]:
        raise Refused("lists an object whose upload broke off")
    return Finding("an upload that breaks off leaves no object, and an old one as it was")


def conditional_create(site: Site) -> Finding:
    """Whether ``If-None-Match: *`` keeps a write from replacing, also where many come at once."""
    name = site.part_name()
    _put(site, name, b"first")
    second = _create(site, name, b"second")
    rounds = [_race(site) for _ in range(ROUNDS if site.full else SHORT_ROUNDS)]
    flag = create_flag(second, rounds)
    winners = [each.winners for each in rounds]
    return Finding(
        f"If-None-Match is {flag}: over an object {second.status}, of {RACERS} at once {', '.join(map(str, winners))} succeed",
        {"status": second.status, "winners": winners},
        {"conditional_create": flag},
    )


def compare_and_swap(site: Site) -> Finding:
    """Whether ``If-Match`` lets a write replace only the state that it names."""
    name = site.part_name()
    old = _tag(_put(site, name, b"one"))
    right = _swap(site, name, b"two", old)
    stale = _swap(site, name, b"three", old if right.ok else '"0123456789abcdef0123456789abcdef"')
    tag = _tag(_put(site, name, b"four"))
    winners = sum(answer.ok for answer in site.at_once(RACERS, lambda number: _swap(site, name, b"%d" % number, tag)))
    flag = swap_flag(right, stale, winners)
    return Finding(
        f"If-Match is {flag}: the present state {right.status}, an older one {stale.status}, of {RACERS} at once {winners} succeed",
        {"right": right.status, "stale": stale.status, "winners": winners},
        {"compare_and_swap": flag},
    )


def checksums(site: Site) -> Finding:
    """Which content hashes are checked: a write with the right one succeeds, with a wrong one not."""
    body = site.runtime.randomness.random_bytes(1000)
    other = body[::-1]
    kinds: dict[str, Callable[[bytes], Answer | None]] = {
        "crc32": lambda told: _put_with(site, "x-amz-checksum-crc32", zlib.crc32(told).to_bytes(4), body),
        "md5": lambda told: _put_with(site, "Content-MD5", hashlib.md5(told, usedforsecurity=False).digest(), body),
        "sha256": lambda told: _raw(site).put_hashed(site.part_name(), body, hashlib.sha256(told).hexdigest()),
    }
    refused = []
    for kind, put in kinds.items():
        right = put(body)
        wrong = put(other) if right is not None and right.ok else None
        if wrong is not None and not wrong.ok:
            refused.append(kind)
    return Finding(
        f"writes with a wrong checksum are refused by {', '.join(refused) or 'none'}",
        {"asked": sorted(kinds)},
        {"refused_checksums": tuple(refused)},
    )


def _raw(site: Site) -> RawStore:
    if site.raw is None:
        raise Internal("a probe of object stores was asked of another place")
    return site.raw


def _get_range(site: Site, name: str, start: int, end: int) -> Answer:
    return _ask(site, "GET", name, headers={"Range": f"bytes={start}-{end - 1}"})


def _find(site: Site, name: str) -> bytes | None:
    """Return an object's bytes, None where there is none. A HEAD alone is not believed: it may be right where a GET fails.

    Raises:
        Unavailable: the store answers neither way, so that nothing can be judged.
    """
    answer = _ask(site, "GET", name)
    if answer.status == _ABSENT:
        return None
    return _done(site, "GET", name, answer).body


def _put(site: Site, name: str, body: bytes) -> Answer:
    """Write an object that a probe needs; raises `Unavailable` where it was not written."""
    return _done(site, "PUT", name, _ask(site, "PUT", name, body=body))


def _ask(
    site: Site, method: Literal["GET", "PUT"], name: str, *, headers: dict[str, str] | None = None, body: bytes = b""
) -> Answer:
    """Return a store's answer, asked again while it is busy; raises `Unavailable` where it stays so: it can't be judged."""
    for _ in range(_ATTEMPTS):
        answer = _raw(site).request(method, name, headers=headers, body=body)
        if answer.status not in _BUSY:
            return answer
        site.runtime.clock.sleep(_SECOND_LOOK_S)
    return _done(site, method, name, answer)


def _done(site: Site, method: str, name: str, answer: Answer) -> Answer:
    if not answer.ok:
        raise Unavailable(f"{method} {name} on {site.url} failed: it answers {answer.status}", device=site.url)
    return answer


def _create(site: Site, name: str, body: bytes) -> Answer:
    return _put_if(site, name, {"If-None-Match": "*"}, body)


def _race(site: Site) -> CreateRound:
    name = site.part_name()
    won = site.at_once(RACERS, lambda number: _create(site, name, b"%d" % number).ok)
    kept = _find(site, name)
    return CreateRound(sum(won), any(won[number] and kept == b"%d" % number for number in range(RACERS)))


def _swap(site: Site, name: str, body: bytes, tag: str) -> Answer:
    return _put_if(site, name, {"If-Match": tag}, body)


def _put_if(site: Site, name: str, condition: dict[str, str], body: bytes) -> Answer:
    """Return the answer to a conditional PUT; one of many at once that got none has not won, as far as anybody knows."""
    try:
        return _raw(site).request("PUT", name, headers=condition, body=body)
    except Unavailable:
        return Answer(0, {}, b"")


def _tag(answer: Answer) -> str:
    return answer.headers.get("etag", '"none"')


def _put_with(site: Site, header: str, digest: bytes, body: bytes) -> Answer:
    headers = {header: base64.b64encode(digest).decode()}
    return _raw(site).request("PUT", site.part_name(), headers=headers, body=body)
