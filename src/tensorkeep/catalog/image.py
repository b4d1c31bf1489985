"""Rules of a catalog's image: what a rebuild must have found for a catalog to be filled with it. No I/O."""

import msgspec

from tensorkeep.catalog.chain import check_tail
from tensorkeep.catalog.protocol import CatalogImage, Location, ObjectKey
from tensorkeep.errors import Integrity, InvalidInput
from tensorkeep.records.history import Snapshot, decode_entry


def check_image(image: CatalogImage, *, store: str) -> set[int]:
    """Return the seqs of the image's entries that hold snapshots, after everything in it was found to fit together.

    Raises:
        InvalidInput: another store's, a broken journal, a name without its target, or a version without its objects.
    """
    if image.store != store:
        raise InvalidInput(f"the image is of store {image.store}, this catalog is of store {store}")
    check_tail(image.entries, store=store, epoch=image.epoch)
    state = image.state
    for version in state.versions.values():
        if version.model not in state.models:
            raise InvalidInput(f"version {version.id} is of model {version.model}, which the image has not")
        if version.id not in image.objects:
            raise InvalidInput(f"the image does not say which objects version {version.id} refers to")
    for ref in state.refs:
        if ref.model not in state.models or ref.version not in state.versions:
            raise InvalidInput(f"the {ref.kind} {ref.name!r} points at {ref.version}, which the image has not")
    for location in image.locations:
        if location.device not in state.devices:
            raise InvalidInput(f"{location.name} lies on device {location.device}, which the image has not")
        if location.state == "condemned":
            raise InvalidInput(f"{location.name} is condemned: a rebuild brings back only what is kept")
    return {
        row.seq
        for row in image.entries
        if any(isinstance(change, Snapshot) for change in decode_entry(row.body).changes)
    }


def settled_locations(image: CatalogImage) -> list[Location]:
    """Return the image's locations, those that versions refer to as a commit would have left them: else gc looked at them each time."""
    referenced = {key for version in image.state.versions for key, _ in image.objects[version]}
    return [
        msgspec.structs.replace(location, state="live")
        if location.state == "stored" and location.key in referenced
        else location
        for location in image.locations
    ]


def object_sizes(image: CatalogImage) -> dict[ObjectKey, int]:
    """Return every object of the image and its size.

    Raises:
        Integrity: the image gives an object two sizes.
    """
    sizes: dict[ObjectKey, int] = {}
    known = [pair for version in image.state.versions for pair in image.objects[version]]
    known += [(location.key, location.size_bytes) for location in image.locations]
    for key, size in known:
        if sizes.setdefault(key, size) != size:
            raise Integrity(f"{key.kind} {key.digest.hex()} is known with {sizes[key]} and with {size} bytes")
    return sizes
