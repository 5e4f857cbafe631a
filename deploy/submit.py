"""Orders one training job from Vertex AI.

python -m deploy.submit --job_name=pets-1 --project=P --region=R --bucket=gs://B \
    --image=IMAGE --dry_run -- --data_dir=gs://B/tfds --epochs=20
"""

import sys
from collections.abc import Sequence

from deploy import command, sending, service, spec
from deploy.order import Asking, Order, Sending


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command.run(
        "Orders one training job from Vertex AI. Ordered again under its job_name, it "
        "goes on from its checkpoints. The trainer's flags come after --.",
        _submit,
        (Order, Sending, Asking),
        argv,
    )


def _submit(order: Order, how: Sending, asking: Asking, trainer_args: list[str]) -> int:
    job = sending.send(
        service.CUSTOM,
        order,
        how,
        asking,
        lambda region: spec.custom_job(order, trainer_args, region),
    )
    return sending.exit_code(job) if job and how.wait else 0


if __name__ == "__main__":
    sys.exit(main())
