"""What is wrong with a folder of pictures, and how it is told."""

import collections
import dataclasses
from collections.abc import Sequence

WARNINGS_SHOWN = 3  # Files of each kind; of what is refused, every file is named.


@dataclasses.dataclass(frozen=True)
class Defect:
    """Something wrong with one file, or worth a word where it is not refused."""

    kind: str
    file: str
    what: str
    refused: bool = True


def report(defects: Sequence[Defect]) -> str:
    """Returns the defects, kind after kind, those that are refused first."""
    kinds = collections.defaultdict(list)
    for defect in defects:
        kinds[not defect.refused, defect.kind].append(defect)
    lines = []
    for (is_warning, kind), those in sorted(kinds.items()):
        label = "warning" if is_warning else "defect"
        lines.append(f"{label}: {kind} ({len(those)})")
        shown = those[:WARNINGS_SHOWN] if is_warning else those
        lines += [f"  {defect.file}: {defect.what}" for defect in shown]
        if len(those) > len(shown):
            lines.append(f"  ... and {len(those) - len(shown)} more")
    return "\n".join(lines)
