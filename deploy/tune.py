"""Orders a search for the best settings, a tuning job, from Vertex AI.

python -m deploy.tune --job_name=search-1 --project=P --region=R --bucket=gs://B \
    --image=IMAGE --metric=val_mean_iou --trials=20 \
    --search=learning_rate=1e-4..1e-2:log,batch_size=16/32/64 -- --data_dir=gs://B/tfds
"""

import sys
from collections.abc import Sequence

from deploy import command, sending, service, spec, trials
from deploy.order import Asking, Order, Search, Sending


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command.run(
        "Orders a search for the best settings of the trainer, a tuning job, from "
        "Vertex AI; with --wait, the table of its trials is the answer. The trainer's "
        "flags come after --.",
        _tune,
        (Order, Search, Sending, Asking),
        argv,
    )


def _tune(
    order: Order, search: Search, how: Sending, asking: Asking, trainer_args: list[str]
) -> int:
    job = sending.send(
        service.TUNING,
        order,
        how,
        asking,
        lambda region: spec.tuning_job(order, search, trainer_args, region),
    )
    if not job or not how.wait:
        return 0
    print(trials.summary(job))
    return sending.exit_code(job)


if __name__ == "__main__":
    sys.exit(main())
