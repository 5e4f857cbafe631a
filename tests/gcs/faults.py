"""What goes wrong between a job and the storage, and how far away the storage is."""

import dataclasses
import random


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of one request.

    Attributes:
        slow: Whether it is answered later.
        error: The status it is answered with, and nothing is done; None for no error.
        cut: Whether the connection ends in the middle of the body: of the request,
            which then has no effect, or, if that has none, of the answer.
        lost: Whether it is done but the connection ends before the answer.
        cut_at: Where the body is cut, [0, 1) of its length.
    """

    slow: bool
    error: int | None
    cut: bool
    lost: bool
    cut_at: float


@dataclasses.dataclass(frozen=True)
class Faults:
    """The settings: shares are of requests, [0, 1]; of one request only one comes true.

    The n-th request after they were set has the same fate each time they are set.

    Raises:
        ValueError: If the shares add up to more than all requests.
    """

    # Answered with one of the statuses, and nothing is done.
    error_share: float = 0.0
    error_statuses: tuple[int, ...] = (429, 500, 503)
    # The connection ends in the middle of the body; an upload leaves nothing.
    cut_share: float = 0.0
    # Done, but the connection ends before the answer.
    lost_share: float = 0.0
    # Answered later by so many seconds; comes beside the others.
    slow_share: float = 0.0
    slow_seconds: float = 1.0
    # Of each request.
    latency_seconds: float = 0.0
    # Of each connection, each way.
    bytes_per_second: float | None = None
    # From this request on, the first is 1, nothing gets through; counts all requests
    # or those that write.
    drop_from: int | None = None
    drop_counts_writes_only: bool = False
    # Permission, such as storage.objects.get -> for which objects it is denied: those
    # that begin with this prefix, "" all, "!jobs/" all but those that begin with jobs/.
    denied: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        total = self.error_share + self.cut_share + self.lost_share
        if total > 1:
            raise ValueError(f"the shares must add up to at most 1, got {total}")

    def fate(self, number: int) -> Fate:
        """Returns what becomes of the request of that number, from 1."""
        chance = random.Random(f"{self.seed} {number}")
        which, slow, cut_at = (chance.random() for _ in range(3))
        status = chance.choice(self.error_statuses)
        uncut = self.error_share + self.cut_share
        return Fate(
            slow=slow < self.slow_share,
            error=status if which < self.error_share else None,
            cut=self.error_share <= which < uncut,
            lost=uncut <= which < uncut + self.lost_share,
            cut_at=cut_at,
        )

    def transfer_seconds(self, num_bytes: int) -> float:
        """Returns how long bytes take on a connection."""
        return num_bytes / self.bytes_per_second if self.bytes_per_second else 0.0

    def denies(self, permission: str, name: str | None = None) -> bool:
        """Returns whether a permission is denied for an object; None for the bucket."""
        prefix = self.denied.get(permission)
        if prefix is None:
            return False
        if prefix.startswith("!"):
            return name is None or not name.startswith(prefix[1:])
        return (name or "").startswith(prefix)
