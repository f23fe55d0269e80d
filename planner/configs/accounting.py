"""What became of every key of a configuration file: used, without effect, or not modelled."""

from dataclasses import dataclass

USED = "used"
IRRELEVANT = "irrelevant"
NOT_MODELLED = "not_modelled"
STATUSES = (USED, IRRELEVANT, NOT_MODELLED)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of one file.

    Attributes:
        file: as messages name it.
        line: of the key, from 1.
        key: its path in the file, such as "fsdp_config.fsdp_version".
        status: one of STATUSES.
        note: what it sets, why it changes neither memory, time nor cost, or what is not modelled. Never a value from the file
            that could be a secret.
    """

    file: str
    line: int
    key: str
    status: str
    note: str

    def to_json(self) -> dict[str, object]:
        """As in the report."""
        return {"file": self.file, "line": self.line, "key": self.key, "status": self.status, "note": self.note}
