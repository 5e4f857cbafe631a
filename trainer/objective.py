"""What a run makes small, read from its settings. No TensorFlow here."""

import math

LOSSES = ("cross_entropy", "focal", "dice", "jaccard", "lovasz")
FOCAL_GAMMA = 2.0  # Lin et al. 2017, arXiv:1708.02002, section 4.1.
FREQUENCY = "frequency"  # In the place of class weights: those of the training pixels.


def terms(loss: str) -> dict[str, float]:
    """Returns the factor of each loss in a sum such as cross_entropy+0.5*dice.

    Raises:
        ValueError: If it has another form, or names a loss twice.
    """
    found: dict[str, float] = {}
    for term in loss.split("+"):
        factor, _, name = term.rpartition("*")
        name, number = name.strip(), _number(factor if "*" in term else "1")
        if name not in LOSSES or not 0 < number < math.inf:
            raise ValueError(
                f"loss must be a sum of {', '.join(LOSSES)}, each with a factor above 0 "
                f"or none, such as cross_entropy+0.5*dice, got {loss!r}"
            )
        if name in found:
            raise ValueError(f"loss must name each loss once, got {loss!r}")
        found[name] = number
    return found


def class_weights(text: str | None) -> tuple[float, ...] | None:
    """Returns the weight of each class; None where they are not given as numbers.

    Raises:
        ValueError: If it is none of numbers and `FREQUENCY`.
    """
    if text in (None, FREQUENCY):
        return None
    weights = tuple(_number(part) for part in text.split(","))
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(
            f"class_weights must be {FREQUENCY}, or numbers separated by commas, none "
            f"below 0 and one above, got {text!r}"
        )
    return weights


def shown(loss: str, class_weights: str | None, label_smoothing: float) -> str:
    """Returns a few words for what is trained on; cross_entropy only if it is plain."""
    weighted = ", weighted" if class_weights else ""
    return loss + weighted + (", smoothed" if label_smoothing else "")


def check(
    loss: str, focal_gamma: float, label_smoothing: float, weights: str | None
) -> None:
    """Raises ValueError where a setting of this name is malformed or has no effect."""
    names = terms(loss)
    class_weights(weights)
    if focal_gamma != FOCAL_GAMMA and "focal" not in names:
        raise ValueError(
            f"focal_gamma needs focal in loss, got {loss}; add --loss=focal"
        )
    if label_smoothing and "cross_entropy" not in names:
        raise ValueError(
            f"label_smoothing needs cross_entropy in loss, got {loss}; leave it out"
        )


def check_classes(text: str | None, class_names: tuple[str, ...]) -> None:
    """Raises ValueError unless there is a weight for each class, or none at all."""
    weights = class_weights(text)
    if weights is not None and len(weights) != len(class_names):
        raise ValueError(
            f"class_weights must be one for each of {', '.join(class_names)}, got "
            f"{len(weights)} for {len(class_names)}: {text}"
        )


def _number(text: str) -> float:
    """Returns a number; nan for a text that is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
