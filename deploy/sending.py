"""An order on its way: shown or sent, region after region, and waited for."""

import json
import time
from collections.abc import Callable

from deploy import command, errors, service, spec, storage
from deploy.order import Asking, Order, Sending
from deploy.service import Job, Service


def send(
    kind: str,
    order: Order,
    sending: Sending,
    asking: Asking,
    request_in: Callable[[str], spec.Request],
) -> Job | None:
    """Returns the job that was made, or has ended with --wait; None for a dry run.

    Args:
        kind: CUSTOM or TUNING.
        order: What is asked for.
        sending: How it is sent.
        asking: How the service is asked.
        request_in: Makes the request for a region; raises ValueError.

    Raises:
        ValueError: If the order breaks a rule, in any of its regions.
        Failure: If it cannot be sent.
    """
    regions = order.places or ("",)
    requests = {region: request_in(region) for region in regions}
    storage.check_package(order)
    if sending.dry_run:
        first = regions[0]
        address = asking.api_endpoint or f"https://{service.host(first)}"
        where = f"{address}/v1/projects/{order.project}/locations/{first}/{kind}"
        command.note(f"not sent: POST {where}")
        print(json.dumps(requests[first], indent=2))
        return None
    if len(regions) > 1:
        command.note(
            f"{order.bucket} stays in its own region: a job in another one reads and "
            "writes across, which takes time and costs money"
        )
    # All of them first: without the SDK or credentials nothing is begun.
    project, endpoint = str(order.project), asking.api_endpoint
    services = {region: Service(project, region, endpoint) for region in regions}
    for region, request in requests.items():
        services[region].message(kind, request)
    for region, request in requests.items():
        more = region != regions[-1]
        if kind == service.TUNING:
            storage.check_new(order)
        if region == regions[0]:
            storage.upload_package(order)
        try:
            job = services[region].create(kind, request)
        except errors.NoQuota as error:
            if not more:
                raise
            command.note(f"{region}: {error}")
            continue
        print(job["name"], flush=True)
        command.note(service.console_address(job))
        if not sending.wait:
            return job
        job = wait(services[region], job, asking.poll_seconds)
        if not (more and service.out_of_stock(job)):
            return job
        if kind == service.TUNING and storage.begun(order):
            command.note(f"{region} has no machines for more trials; these are kept")
            return job
        command.note(f"{region} has no machines for it; on to the next region")
    raise AssertionError("the last region returns or raises")


def wait(there: Service, job: Job, poll_seconds: float) -> Job:
    """Returns a job once it has ended, having said each new state of it."""
    again = f"the job goes on; wait again: python -m deploy.jobs wait {job['name']}"
    last = None
    try:
        while True:
            if (now := service.state(job)) != last:
                command.note(f"{time.strftime('%H:%M:%S')} {job['displayName']}: {now}")
                last = now
            if job.get("state") in service.ENDED:
                return job
            time.sleep(poll_seconds)
            job = there.get(job["name"], errors.PATIENCE_SECONDS)
    except KeyboardInterrupt:
        raise command.Interrupted(f"stopped waiting, {again}") from None
    except command.Failure as error:
        raise command.Failure(f"{error}; {again}") from None


def exit_code(job: Job) -> int:
    """Returns 0 for a job that succeeded; else says why it did not, and returns 1."""
    if job.get("state") == "JOB_STATE_SUCCEEDED":
        return 0
    said = job.get("error", {}).get("message", "")
    why = f": {' '.join(said.split())}" if said else ""
    hint = (
        "; no machines were free: try later, another machine_type, scheduling or "
        "--regions"
        if service.out_of_stock(job)
        else ""
    )
    logs = f"; its log: {service.logs_address(job)}"
    return command.stopped(
        command.FAILED, f"{job['displayName']} {service.state(job)}{why}{hint}{logs}"
    )
