"""The contract suite of catalogs: every method and every rule of `tensorkeep.catalog.protocol`.

A kind of catalog passes when a subclass that implements ``make_catalog`` does:

    class TestMyCatalog(CatalogContract):
        def make_catalog(self, folder, runtime, *, policy="replicas=1", snapshot_every=1000):
            return MyCatalog(...)
"""

from tensorkeep.testing.catalog_commit_contract import CommitRules, ReadRules
from tensorkeep.testing.catalog_fragment_contract import FragmentRules
from tensorkeep.testing.catalog_gc_contract import GcRules
from tensorkeep.testing.catalog_journal_contract import JournalRules, RebuildRules, StaleRules
from tensorkeep.testing.catalog_names_contract import DeviceRules, NameRules
from tensorkeep.testing.catalog_push_contract import StageRules
from tensorkeep.testing.catalog_race_contract import RaceRules
from tensorkeep.testing.catalog_repair_contract import RepairRules
from tensorkeep.testing.catalog_retention_contract import RetentionRules


class CatalogContract(
    DeviceRules,
    NameRules,
    StageRules,
    FragmentRules,
    CommitRules,
    ReadRules,
    GcRules,
    RepairRules,
    RetentionRules,
    JournalRules,
    StaleRules,
    RebuildRules,
    RaceRules,
):
    """All rules together."""
