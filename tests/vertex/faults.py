"""What goes wrong at the next requests."""

import dataclasses

from tests.vertex import wire

# As the real service words it, as far as it is known.
MESSAGES = {
    400: "Request contains an invalid argument.",
    401: "Request had invalid authentication credentials.",
    403: "Permission 'aiplatform.{kind}.{verb}' denied on resource "
    "'//aiplatform.googleapis.com/{parent}' (or it may not exist).",
    404: "The resource {parent} was not found.",
    409: "Requested entity already exists",
    429: "The following quota metrics exceed quota limits: "
    "aiplatform.googleapis.com/custom_model_training_nvidia_l4_gpus",
    500: "Internal error encountered.",
    502: "The server is temporarily unavailable.",
    503: "The service is currently unavailable.",
    504: "Deadline exceeded.",
}


@dataclasses.dataclass
class Fault:
    """What becomes of the next requests that it is meant for.

    Attributes:
        what: The status they are answered with, and nothing is done; or "dropped": the
            connection ends and nothing is done; or "lost": it is done, but the
            connection ends without an answer.
        times: Of how many requests.
        region: Only of those to this region.
        method: Only of those with this method, as GET.
        message: What an error says; None is what the service would say.

    Raises:
        ValueError: If there is no such fault.
    """

    what: int | str
    times: int = 1
    region: str | None = None
    method: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        if self.what not in ("dropped", "lost") and self.what not in wire.CODES:
            raise ValueError(f"a fault is dropped, lost or a status, got {self.what!r}")

    def fits(self, request: wire.Request) -> bool:
        """Returns whether it is meant for this request."""
        return (
            self.times > 0
            and self.method in (None, request.method)
            and (self.region is None or f"/locations/{self.region}/" in request.path)
        )

    def refusal(self, request: wire.Request) -> wire.Refusal:
        """Returns the error that a request is answered with."""
        assert isinstance(self.what, int)
        parent, _, rest = request.path.removeprefix("/v1/").rpartition("/")
        verb = {"POST": "create"}.get(request.method, "list")
        if rest.partition(":")[0].isdigit():
            verb = {"POST": "cancel"}.get(request.method, "get")
            parent, _, rest = parent.rpartition("/")
        usual = MESSAGES[self.what].format(kind=rest, verb=verb, parent=parent)
        return wire.Refusal(self.what, usual if self.message is None else self.message)


def take(faults: list[Fault], request: wire.Request) -> Fault | None:
    """Returns the first that is meant for a request, and counts it as used."""
    for fault in faults:
        if fault.fits(request):
            fault.times -= 1
            return fault
    return None
