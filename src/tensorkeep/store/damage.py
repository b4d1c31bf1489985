"""What a load learnt about bad copies goes back to the catalog, so that repair, status and later loads know."""

from collections.abc import Sequence

from tensorkeep.errors import TensorkeepError
from tensorkeep.records.checks import Checks
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.manifest import Manifest
from tensorkeep.store.context import StoreContext
from tensorkeep.store.structure import open_checks
from tensorkeep.transfer.report import Damage


def confirm_checks(context: StoreContext, version: VersionFacts, manifest: Manifest) -> Checks:
    """Return the checks read whole again, verified against their digest: before a part is blamed for a failed block."""
    return open_checks(context, version, manifest)


def record_damage(context: StoreContext, damaged: Sequence[Damage]) -> None:
    """Mark copies that a load proved corrupt or missing as bad. Unreachable is never absent: those stay as they are.

    Of a load that failed too: else a push would take the damaged copies for good ones and heal nothing.
    """
    bad = [d.location for d in damaged if d.kind in ("corrupt", "missing") and d.confirmed]
    if not bad or context.read_only:
        return
    try:
        context.catalog.record_checked(good=[], bad=bad)
    except TensorkeepError:
        # The load's own answer counts; a note that can't be written now is written by the next load or scrub.
        return
