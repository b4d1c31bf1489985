"""Removes what a check wrote to an object store: all that was noted, and all that is listed; a bad store may list too little."""

from collections.abc import Callable
from typing import TypeVar

from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.object_store_clients import ObjectStoreClients, RequestLimits
from tensorkeep.devices.object_store_errors import read_answer, translate_answer
from tensorkeep.devices.object_store_url import ObjectStorePlace
from tensorkeep.devices.protocol import Device
from tensorkeep.runtime import Runtime

T = TypeVar("T")

_WORKERS = 8
_ATTEMPTS = 3


class NotingDevice(ForwardingDevice):
    """Does what the device inside does, and notes the names of what is put.

    Args:
        inner: the device to wrap.
        written: gets the names.
    """

    def __init__(self, inner: Device, written: set[str]) -> None:
        super().__init__(inner)
        self._written = written

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns; note its name first."""
        if method == "put":
            self._written.add(name)
        return call()


def remove_objects(place: ObjectStorePlace, names: set[str], *, runtime: Runtime) -> None:
    """Delete these objects of a place, and all that it lists.

    Raises:
        Unavailable, PermissionDenied: it can't be done.
    """
    import obstore  # noqa: PLC0415 - a local store must not load it
    from obstore.exceptions import BaseError  # noqa: PLC0415

    client = ObjectStoreClients(place, runtime, RequestLimits()).of_size(0)

    def ask(call: Callable[[], T]) -> T | None:
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except (BaseError, OSError) as error:
                answer = read_answer(error)
            if answer.object_is_absent:
                return None
            refusal = translate_answer(answer, "removing what the check wrote", url=place.url, name=None)
            if attempt + 1 == _ATTEMPTS or not refusal.facts.get("passing"):
                break
        raise refusal

    def list_keys() -> set[str]:
        return {meta["path"] for page in obstore.list(client, place.prefix) for meta in page}

    def delete(keys: set[str]) -> None:
        with runtime.workers.open_pool(_WORKERS, "check") as pool:
            deleting = [pool.submit(ask, lambda key=key: obstore.delete(client, key)) for key in sorted(keys)]
            for each in deleting:
                each.result()

    # By name first: a store that lists wrongly may not list at all.
    delete({f"{place.prefix}/{name}" for name in names})
    delete(ask(list_keys) or set())
