"""What the benchmark of the training step counts, compares and shows."""

import itertools
import signal
import sys

import keras
import numpy as np
import pytest

from benchmarks import flops, step_figures, turns, tutorial
from benchmarks.step_figures import Case


def test_flops_of_a_frozen_and_a_trained_convolution_by_hand():
    # Two inputs of 2 and 3 channels, 4 x 4 pixels, 3 x 3 kernel, 5 channels out: 1440 and
    # 2160 multiplications.
    one = flops.Convolution("one", (1440, 2160), False, (False, False))
    assert flops.needed([one]) == 2 * 3600
    assert flops.needed([one._replace(trained=True)]) == 2 * 7200
    behind = one._replace(trained=True, behind=(True, False))
    assert flops.needed([behind]) == 2 * (7200 + 1440)
    assert flops.needed([one, behind]) == 2 * (3600 + 7200 + 1440)


def test_flops_of_the_smallest_decoder_by_hand():
    up_512, *_, logits = flops.decoder(32, 3, train_encoder=False)
    assert up_512.macs == (9 * 320 * 512,)  # One pixel.
    assert (up_512.trained, up_512.behind) == (True, (False,))
    assert logits.macs == (16 * 16 * 9 * 64 * 3, 16 * 16 * 9 * 96 * 3)
    assert logits.behind == (True, False)
    assert flops.decoder(32, 3, train_encoder=True)[-1].behind == (True, True)


def test_flops_of_a_step_at_the_tutorials_settings():
    decoder = [one._replace(trained=False) for one in flops.decoder(128, 3, False)]
    forward = [one._replace(behind=(False,) * len(one.macs)) for one in decoder]
    assert 64 * flops.needed(forward) == pytest.approx(63.3e9, rel=1e-3)
    assert flops.of_step(64, 128, 3, False) == pytest.approx(168e9, rel=2e-3)
    # The encoder, and what lies between it and the loss: twice its forward pass, less the
    # gradient of the image, and the gradients of bottleneck and skips.
    assert flops.of_step(64, 128, 3, True) == pytest.approx(224e9, rel=2e-3)


def test_multiplications_are_those_of_the_tutorials_layers():
    def macs(layer: keras.Layer) -> int:
        up = isinstance(layer, keras.layers.Conv2DTranspose)
        pixels = np.prod((layer.input if up else layer.output).shape[1:3])
        return int(pixels * np.prod(layer.kernel.shape))

    model = tutorial.unet_model(3, image_size=64, encoder_weights=None)
    layers = list(model._flatten_layers())
    found = [macs(layer) for layer in layers if hasattr(layer, "kernel")]
    counted = flops.encoder(64, trained=True) + flops.decoder(64, 3, True)
    assert sorted(found) == sorted(sum(one.macs) for one in counted)


def rates(sides: tuple[str, ...], *rounds: tuple[float, ...]) -> dict:
    made = (Case(side, "frozen", "float32") for side in sides)
    return dict(zip(made, rounds, strict=True))


def test_figures_are_medians_of_the_ratios_of_each_round():
    # The machine pauses in the second round, and halves in the third.
    measured = rates(
        ("fit", "ours", "eager"), (10, 1, 5), (20, 20, 12), (20.0, 1.0, 10.0)
    )
    products = {"float32": [100e9, 100e9, 50e9]}
    found = step_figures.summary(measured, products, {"frozen": 2_000_000_000})
    fit, ours, eager = found.values()
    assert list(found)[1] == "ours frozen float32"
    assert ours["images_per_second"] == 20
    assert ours["flops_per_second"] == 40e9
    assert ours["of_the_matrix_product"] == pytest.approx(0.4)
    assert (fit["over_fit_float32"], ours["over_fit_float32"]) == (1, 2.4)
    assert (fit["ours_over_it"], eager["ours_over_it"]) == (2.4, 1.2)
    assert ours["ours_over_it"] is None


def test_table_of_steps_has_a_row_for_each_and_gaps_where_nothing_compares():
    found = step_figures.summary(
        rates(("channels_last",), (30.04, 30.04)),
        {"float32": [200e9, 200e9]},
        {"frozen": 2_500_000_000},
    )
    heading, rule, row = step_figures.table(found).splitlines()
    shown = (
        "| PyTorch, eager, channels_last | frozen | float32 | 30.0 | 75 | 38% |  |  |"
    )
    assert row == shown
    assert heading.count("|") == rule.count("|") == row.count("|")


def test_every_side_has_like_precisions_but_one():
    found = step_figures.cases(list(step_figures.SIDES), ["float32", "bfloat16"])
    assert len(set(found)) == len(found) == 18
    assert Case("eager", "trained", "bfloat16") not in found
    # Those that are compared lie near each other in time.
    together = [key for key, _ in itertools.groupby(found, lambda case: case[1:])]
    assert len(together) == len(set(together)) == 4


@pytest.mark.parametrize("theirs", [1.003, float("nan")])
def test_a_loss_that_is_not_ours_is_told(theirs):
    ours, eager = (Case(side, "frozen", "float32") for side in ("ours", "eager"))
    fit = Case("fit", "frozen", "float32")
    assert not step_figures.differing({ours: 1.0, eager: 1.0009, fit: None})
    [told] = step_figures.differing({ours: 1.0, eager: theirs, fit: None})
    assert told.startswith("eager frozen float32: ")
    assert not step_figures.differing({eager: theirs})


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
        ("avx512f avx512_vnni", False),
    ],
)
def test_bfloat16_is_found_where_the_processor_multiplies_it(flags, found):
    assert step_figures.has_bfloat16(f"flags\t\t: {flags}\n") is found


def test_a_side_answers_tells_of_failures_and_is_not_disturbed_by_prints():
    script = (
        "from benchmarks import turns\n"
        "def add(a, b): print('chatter'); return a + b\n"
        "turns.serve({'add': add, 'leave': lambda: exit(3)})"
    )
    side = turns.Side([sys.executable, "-c", script])
    assert side.ask("add", 1, 2) == 3
    with pytest.raises(RuntimeError, match="^TypeError: unsupported operand"):
        side.ask("add", 1, None)
    assert side.ask("add", [1], [2]) == [1, 2]
    with pytest.raises(RuntimeError, match="ended with 3"):
        side.ask("leave")
    side.end()


def test_a_side_ends_in_the_middle_of_an_answer():
    script = (
        "import time\nfrom benchmarks import turns\nturns.serve({'sleep': time.sleep})"
    )
    side = turns.Side([sys.executable, "-c", script])
    assert side.ask("sleep", 0) is None
    print('["sleep", 600]', file=side.process.stdin, flush=True)
    side.end()
    assert side.process.returncode == -signal.SIGKILL
