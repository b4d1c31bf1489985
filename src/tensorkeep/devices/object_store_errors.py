"""What an object store answered, read from obstore's errors, and our error for it.

obstore has one `GenericError` for nearly everything; status, code and kind of failure stand only in its text. That text is
never passed on and never chained: an answer to a bad signature repeats the key's name and the signature.
"""

import re
from dataclasses import dataclass
from typing import Any

from tensorkeep.errors import (
    Capacity,
    Integrity,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)

_STATUS = re.compile(r"\bstatus: (\d{3})\b|non-2xx status code: (\d{3})\b")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_KIND = re.compile(r"\bkind: (Connect|Timeout|Interrupted|Request|Decode|Unknown)\b")

_ABSENT_PLACE = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_ABSENT_OBJECT = frozenset({"NoSuchKey", "BlobNotFound"})
_NO_ROOM = frozenset({"QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "AccountLimitExceeded"})
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_WRONG_KEY = frozenset({"SignatureDoesNotMatch", "InvalidAccessKeyId", "AuthenticationFailed", "InvalidSecurity"})
_EXPIRED = frozenset({"ExpiredToken", "TokenRefreshRequired", "InvalidToken"})
_DAMAGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest", "IncompleteBody", "Md5Mismatch"})
_PASSING = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "OperationTimedOut", "ServerBusy", "OperationAborted"}
)
_WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})
_REFUSED = frozenset({501, 505, 507})
"""Errors of a server that tell that nothing was done: not implemented, version, no room."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``status`` is None where no answer came; ``code`` and ``kind`` are "" where none is known."""

    status: int | None
    code: str
    kind: str
    trouble: str = ""

    @property
    def place_is_absent(self) -> bool:
        """The store said that the bucket is not there."""
        return self.code in _ABSENT_PLACE

    @property
    def object_is_absent(self) -> bool:
        """The store said so, or said 404 without saying of what (an answer to HEAD has no body)."""
        return self.code in _ABSENT_OBJECT or (self.status == 404 and not self.place_is_absent)

    @property
    def says_what_is_absent(self) -> bool:
        """The answer tells an absent object from an absent bucket."""
        return self.code in _ABSENT_OBJECT or self.place_is_absent

    @property
    def name_is_taken(self) -> bool:
        """A conditional put was refused, because the object is there."""
        return self.status == 412 or self.code == "BlobAlreadyExists"

    @property
    def put_is_unclear(self) -> bool:
        """A put that ended so may have been done, or may yet be: no answer after it was sent, an error of the server, a race."""
        if self.status is None:
            return self.kind != "Connect"
        broken = self.status >= 500 and self.status not in _REFUSED
        return broken or self.status in (408, 409) or self.code == "RequestTimeout"

    @property
    def condition_is_unknown(self) -> bool:
        """The store does not know conditional puts."""
        return self.status == 501 or self.code == "NotImplemented"


def read_answer(error: BaseException) -> Answer:
    """Return what an error of obstore's says."""
    text = str(error)
    status = _STATUS.search(text)
    code = _CODE.search(text)
    kind = _KIND.search(text)
    number = int(status[1] or status[2]) if status else None
    if number is None and isinstance(error, FileNotFoundError):
        number = 404
    return Answer(number, code[1] if code else "", kind[1] if kind else "", _find_trouble(error, text))


def _find_trouble(error: BaseException, text: str) -> str:
    """Name what obstore found wrong with an answer that looked like a success."""
    if "NotPartial" in text:
        return "not_partial"
    if "UnexpectedRange" in text or "NoContentRange" in text:
        return "wrong_range"
    if "BareRedirect" in text:
        return "redirect"
    return "unauthenticated" if type(error).__name__ == "UnauthenticatedError" else ""


def translate_answer(answer: Answer, doing: str, *, url: str, name: str | None, **facts: Any) -> TensorkeepError:
    """Return our error for an answer; ``doing`` says what failed, as in "reading parts/…".

    Absence of an object is the caller's to decide: it may have to ask whether the bucket is there.
    """
    known = {"device": url, "object": name, "status": answer.status, "store_code": answer.code or None, **facts}
    what = f"{doing} on {url}"
    for judge in (_judge_place, _judge_rights, _judge_refusal):
        error = judge(answer, what, known)
        if error is not None:
            return error
    return _no_answer(answer, what, known)


def missing_place(url: str, *, known: dict[str, Any] | None = None, adding: bool = False) -> TensorkeepError:
    """Return the error for a bucket that is not there: lost for a device that was added, `NotFound` for one being added."""
    message = f"the bucket of {url} does not exist: make it with your store's tools, or check name, endpoint and region"
    facts = {**(known or {"device": url}), "reason": "no_bucket"}
    return NotFound(message, **facts) if adding else Unavailable(message, **facts)


def _judge_place(answer: Answer, what: str, known: dict[str, Any]) -> TensorkeepError | None:
    if answer.place_is_absent:
        return missing_place(known["device"], known=known)
    if answer.object_is_absent:
        return NotFound(f"{known['object']} is not on {known['device']}", **known)
    if answer.code in _WRONG_REGION or answer.status in (301, 307) or answer.trouble == "redirect":
        return InvalidInput(
            f"{what} failed: the bucket is in another region or at another endpoint{_shown(answer)}. Add the device with its "
            "region=… and endpoint=…",
            **known,
        )
    if answer.status == 507 or answer.code in _NO_ROOM:
        return Capacity(
            f"{what} failed: the store is full{_shown(answer)}. Free space, raise the quota, or add a device", **known
        )
    return None


def _judge_rights(answer: Answer, what: str, known: dict[str, Any]) -> TensorkeepError | None:
    if answer.code in _CLOCK:
        return PermissionDenied(
            f"{what} was refused: this machine's clock and the store's differ too much{_shown(answer)}. Set the clock (NTP)",
            **known,
            reason="clock",
        )
    if answer.code in _EXPIRED:
        return PermissionDenied(
            f"{what} was refused: the session token has expired{_shown(answer)}. Get a new one",
            **known,
            reason="expired",
        )
    if answer.code in _WRONG_KEY or answer.status == 401 or answer.trouble == "unauthenticated":
        return PermissionDenied(
            f"{what} was refused: the store does not accept the key or its signature{_shown(answer)}. Check the credentials that "
            "the device's URL names",
            **known,
            reason="wrong_key",
        )
    if answer.status == 403:
        return PermissionDenied(
            f"{what} was refused{_shown(answer)}: check the key, and that it may list, read, write and delete under the device's "
            "prefix",
            **known,
        )
    return None


def _judge_refusal(answer: Answer, what: str, known: dict[str, Any]) -> TensorkeepError | None:
    if answer.code in _DAMAGED:
        return Unavailable(
            f"{what}: the bytes were damaged on their way{_shown(answer)}. Try again", **known, passing=True
        )
    if answer.trouble in ("not_partial", "wrong_range"):
        return Integrity(
            f"{what}: the store did not answer with the range that was asked for; it must support ranged reads",
            **known,
            reason=answer.trouble,
        )
    if answer.status is None:
        return None
    if answer.status >= 500 or answer.status in (408, 409, 429) or answer.code in _PASSING:
        return Unavailable(
            f"{what} failed: the store is busy or broken{_shown(answer)}. Try again later", **known, passing=True
        )
    return Unavailable(
        f"{what} was refused{_shown(answer)}: `tensorkeep device check` tells what the store can't do", **known
    )


def _no_answer(answer: Answer, what: str, known: dict[str, Any]) -> TensorkeepError:
    reason = {
        "Connect": "no connection to the store: check the endpoint and the network",
        "Timeout": "the store did not answer in time: try again later",
        "Interrupted": "the connection broke: try again",
    }.get(answer.kind, "the store's answer makes no sense: check that the endpoint is an object store, and try again")
    return Unavailable(f"{what} failed: {reason}", **known, passing=True)


def _shown(answer: Answer) -> str:
    shown = " ".join(str(part) for part in (answer.status, answer.code) if part)
    return f" ({shown})" if shown else ""
