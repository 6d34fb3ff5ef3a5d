"""An audit log and measures in memory: what a test looks at afterwards."""

from dataclasses import dataclass, field

from vnctoken.errors import AuditError


@dataclass
class MemoryAudit:
    """Keeps decisions (an Audit), unless it is full."""

    full: bool = False
    decisions: list = field(default_factory=list)

    def record(self, decision):
        if self.full:
            raise AuditError("the audit log is full")
        self.decisions.append(decision)


class MemoryMeasures:
    """Keeps what it is told (a Measures), as tuples of the method's name and its arguments."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *arguments: self.told.append((name, *arguments))

    def of(self, name):
        return [arguments for told, *arguments in self.told if told == name]
