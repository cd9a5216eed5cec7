"""The model families that agents use: what each needs of vLLM, and what has been seen to run."""

from cluster.catalogue.entry import Entry, Family, KeyValueCache
from cluster.catalogue.files import entry_named, families
from cluster.catalogue.proofs import RESULTS, Check, Proof, ProofsFile, read_proofs
from cluster.catalogue.status import Standing, Status, standing

__all__ = [
    "RESULTS",
    "Check",
    "Entry",
    "Family",
    "KeyValueCache",
    "Proof",
    "ProofsFile",
    "Standing",
    "Status",
    "entry_named",
    "families",
    "read_proofs",
    "standing",
]
