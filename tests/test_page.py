"""The report page: what it shows is what the run found, and names are never markup."""

import contextlib
import html.parser
import json
import re

import numpy as np
import pytest

from tests import browser
from trainer import (
    charts,
    clock,
    config,
    ending,
    gallery,
    metrics,
    page,
    places,
    run_files,
    tables,
    task,
)

EVIL = "<script>alert(1)</script>"
LONG = "an-uncommonly-long-name-of-a-class-" * 4
VOID = {"meta", "link", "input", "wbr"}


def seen(mask, prediction):
    """Returns one example of `gallery.choose`."""
    mask, prediction = np.array(mask, np.uint8), np.array(prediction, np.uint8)
    image = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), np.uint8)
    return image, mask, prediction


def written(
    tmp_path, names=("ground", "disc"), test=True, finite=True, shown=True, **settings
):
    """Returns the path of a page and the result that it is of."""
    counts = np.arange(1, len(names) ** 2 + 1).reshape(len(names), -1)
    counts = counts if finite else counts * 0
    found = {"loss": 0.5 if finite else None, **metrics.summary(counts, list(names))}
    evaluations = [
        {"step": step, **{f"val_{name}": value for name, value in found.items()}}
        for step in (2, 4)
    ]
    result = {
        "complete": True,
        "stopped_by": "epochs",
        "step": 4,
        "epoch": 2.0,
        "last": evaluations[1],
        "best": evaluations[0],
        "test": found if test else None,
        "confusion": {
            "split": "test" if test else "val",
            "examples": 3,
            "class_names": list(names),
            "counts": counts.tolist(),
        },
        "train_images_per_second": 12.3 if finite else None,
        "seconds": 61.0,
        "seconds_of": {"stepping": 40.0, "starting": 20.0, "lost_to_restarts": 1.0},
        "goodput": 40 / 61,
    }
    rows = [
        {"kind": "train", "step": step, "loss": 1 / step if finite else None}
        | {"learning_rate": 0.001 / step}
        for step in range(1, 5)
    ] + [{"kind": "eval", **row} for row in evaluations]
    about = {
        "settings": config.to_dict(config.Config(batch_size=2, **settings)),
        "command": ["task.py", f"--class_names={','.join(names)}"],
        "python": "3.11",
        "packages": {"keras": "3"},
        "host": EVIL,
        "commit": None,
        "devices": ["/device:CPU:0"],
        "replicas": 1,
        "workers": 1,
        "global_batch_size": 2,
        "dataset": dict(name="shapes", version="1.0", train_examples=6, val_examples=2),
    }
    ids = np.arange(64 * 64).reshape(64, 64) % len(names)
    some = [seen(ids, np.roll(ids, place)) for place in range(3)]
    text = page.render(
        about,
        json.loads(json.dumps(result)),
        rows,
        gallery.choose(some, len(names), total=3) if shown else None,
        loss="cross_entropy",
        job_dir=f"/runs/{EVIL}",
        log_dir="/runs/a b/logs",
        checkpoint="/runs/a/checkpoints/step-00000002.npz",
    )
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    return path, result


class Parsed(html.parser.HTMLParser):
    """Reads a page; each element must be closed in its turn."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.cells, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):  # noqa: D102
        self.tags.append((tag, dict(attrs)))
        if tag in ("th", "td"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):  # noqa: D102
        assert self.open.pop() == tag

    def handle_data(self, data):  # noqa: D102
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


NAMES = ["plain", "no test", "not finite", "nothing", "odd names", "many classes"]
CASES = [
    dict(),
    dict(test=False),
    dict(finite=False),
    dict(test=False, finite=False, shown=False),
    dict(names=(EVIL, LONG, "a\"b'c&d")),
    dict(names=[f"class {id}" for id in range(40)]),
]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_page_is_well_formed_and_shows_the_figures_of_the_result(tmp_path, case):
    path, result = written(tmp_path, **case)
    parsed = Parsed(path)
    found = result["test"] or {
        name.removeprefix("val_"): value for name, value in result["best"].items()
    }
    assert tables.figure(found["mean_iou"]) in parsed.text
    names = result["confusion"]["class_names"]
    columns = 4 if result["test"] else 2
    for name in names:
        at = parsed.cells.index(name)
        row = parsed.cells[at + 2 : at + 2 + columns]
        assert row[:2] == [tables.figure(found[f"{m}/{name}"]) for m in ("iou", "dice")]
    titles = [a["title"] for tag, a in parsed.tags if tag == "td" and "title" in a]
    for true, counts in enumerate(result["confusion"]["counts"]):
        for given, count in enumerate(counts):
            told = f"{count:,} of {sum(counts):,} pixels of {names[true]} were given"
            if len(names) <= tables.CONFUSION_MAX:
                assert f"{told} {names[given]}" in titles
    assert len(titles) == min(len(names), tables.CONFUSION_MAX) ** 2


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_page_has_one_script_and_no_address_but_of_its_own(tmp_path, case):
    parsed = Parsed(written(tmp_path, **case)[0])
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            address = attributes.get(name, "")
            assert address.startswith("data:") or not re.search(r":|^/", address)


def test_settings_that_are_not_the_default_come_first(tmp_path):
    parsed = Parsed(written(tmp_path)[0])
    at = parsed.cells.index("batch_size")
    assert parsed.cells[at : at + 3] == ["batch_size", "2", "64"]
    assert at < parsed.cells.index("dataset")
    for name in config.to_dict(config.Config()):
        assert parsed.cells.count(name) == 1 + (name == "batch_size"), name


def test_worst_are_the_examples_of_the_lowest_mean_iou_worst_first():
    mask = np.zeros((4, 4), np.uint8)
    wrong = [0, 5, 1, 16, 0, 3, 2, 4]  # Pixels of each example.
    some = []
    for n in wrong:
        prediction = np.zeros(16, np.uint8)
        prediction[:n] = 1
        some.append(seen(mask, prediction.reshape(4, 4)))
    ignored = seen(mask + 255, mask)
    shown = gallery.choose([*some, ignored], 2, total=20)
    assert (shown.looked_at, shown.total) == (9, 20)
    assert [one.place for one in shown.first] == [0, 1, 2, 3, 4, 5]
    by_iou = sorted(range(8), key=lambda place: -wrong[place])
    assert [one.place for one in shown.worst] == by_iou[: gallery.WORST]
    # Ground: all but the wrong ones; disc: never true, 0.
    assert shown.worst[1].mean_iou == (11 / 16) / 2
    assert gallery.choose([ignored], 2, total=1).first[0].mean_iou is None


def test_of_examples_that_are_alike_the_earlier_ones_are_shown():
    mask = np.zeros((4, 4), np.uint8)
    shown = gallery.choose([seen(mask, mask) for _ in range(9)], 2, total=9)
    assert [one.place for one in shown.worst] == [0, 1, 2, 3, 4, 5]


def test_ticks_are_round_and_hold_the_range():
    assert charts.ticks(0, 240, integers=True) == [0, 50, 100, 150, 200, 250]
    assert charts.ticks(0, 1, integers=True) == [0, 1]
    ranges = ((0.3, 0.9), (0.0, 0.0), (2e-5, 1e-3), (-1, 1e6), (0.5, 0.5))
    for low, high in (*ranges, (0.38, np.nextafter(0.38, 1))):
        found = charts.ticks(low, high)
        assert found[0] < found[-1]
        assert found[0] <= low + 1e-12 and high <= found[-1] + 1e-12
        assert 2 <= len(found) <= charts.TICKS + 2


def test_small_numbers_on_an_axis_are_told_apart():
    shown = [charts.label(tick) for tick in charts.ticks(0, 2e-4)]
    assert shown == ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]


def test_small_numbers_at_a_point_are_told_apart():
    rows = [
        {"kind": "train", "step": step, "loss": 1.0, "learning_rate": rate}
        for step, rate in ((1, 2.5e-4), (2, 3e-5))
    ]
    drawn = charts.of_run(rows, best_step=2, loss="cross_entropy")
    assert "at step 1: 0.00025<" in drawn and "at step 2: 3e-05<" in drawn


def test_hours_have_no_sixty_minutes():
    shown = [page._minutes(60 * minutes) for minutes in (4, 95.2, 119.6)]
    assert shown == ["4.0 min", "1 h 35 min", "2 h 0 min"]


def test_a_chart_of_many_steps_has_few_points_and_short_numbers():
    rows = [{"kind": "train", "step": n, "loss": 1.0} for n in range(1, 30_001)]
    drawn = charts.of_run(rows, best_step=20_000, loss="cross_entropy")
    assert len(drawn) < 10_000
    assert ">30k</span>" in drawn
    assert [charts.whole(n) for n in (0, 9000, 12_500, 2e6)] == [
        *("0", "9,000", "12.5k", "2M")
    ]


# ---------------------------------------------------------------------------
# Of a run


@pytest.fixture
def run(pets, tiny_unet, tmp_path):
    """Runs a job of 2 steps; returns its job_dir."""

    def begin(*more):
        flags = ["--image_size=32", "--batch_size=2", "--total_steps=2"]
        data_dir = pets(8, n_test=5)
        job_dir = tmp_path / "run"
        flags += [f"--data_dir={data_dir}", f"--job_dir={job_dir}", "--num_pictures=2"]
        flags += ["--val_fraction=0.25"]
        assert task.main([*flags, *more]) == 0
        return job_dir

    return begin


def result_of(job_dir):
    return json.loads((job_dir / "result.json").read_text())


def test_a_run_ends_with_a_page_and_its_confusion_matrix(run, capfd):
    job_dir = run()
    result, text = result_of(job_dir), (job_dir / "report.html").read_text()
    assert result["report"] == str(job_dir / "report.html")
    assert f"report: {result['report']}" in capfd.readouterr().out
    counts, names = (result["confusion"][key] for key in ("counts", "class_names"))
    assert metrics.summary(np.array(counts), names).items() <= result["test"].items()
    assert (result["confusion"]["split"], result["confusion"]["examples"]) == (
        "test",
        5,
    )
    assert "all 5 examples of test" in text
    assert text.count('class="picture photograph compare"') == 5
    Parsed(job_dir / "report.html")
    assert len(text) < 1e6


def test_the_page_tells_the_sizes_of_images(tmp_path):
    path, _ = written(tmp_path, train_image_size=96)
    assert "128 pixels a side, 96 in training." in path.read_text(encoding="utf-8")


def test_without_a_test_split_the_page_is_of_validation(run):
    job_dir = run("--test_split=none")
    result = result_of(job_dir)
    assert result["test"] is None and result["confusion"]["split"] == "val"
    found = metrics.summary(
        np.array(result["confusion"]["counts"]), result["confusion"]["class_names"]
    )
    assert {f"val_{name}": v for name, v in found.items()}.items() <= result[
        "best"
    ].items()
    Parsed(job_dir / "report.html")


def test_a_large_split_is_looked_at_in_part_and_the_page_says_so(run, monkeypatch):
    monkeypatch.setattr(gallery, "MOST_LOOKED_AT", 3)
    text = (run() / "report.html").read_text()
    assert "the first 3 of 5 examples of test" in text


@pytest.mark.parametrize("broken", ["render", "choose"])
def test_a_page_that_fails_changes_nothing_of_the_run(run, monkeypatch, capfd, broken):
    def fail(*args, **more):
        raise RuntimeError("a bug of the page")

    monkeypatch.setattr(
        *((page, broken) if broken == "render" else (gallery, broken)), fail
    )
    job_dir = run()
    assert (
        "report.html is not as it should be: a bug of the page"
        in capfd.readouterr().err
    )
    assert result_of(job_dir)["complete"]
    assert (job_dir / "report.html").exists() == (broken == "choose")


def test_the_lease_is_asked_before_the_page_is_written_and_again_before_the_result(
    run, monkeypatch
):
    order = []

    def told(owner, name, as_name):
        does = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a: order.append(as_name) or does(*a))

    lease = contextlib.nullcontext(lambda: order.append("lease"))
    monkeypatch.setattr(places, "hold_leases", lambda *_: lease)
    told(clock, "_peak_memory_bytes", "all is saved")
    told(ending, "write_page", "page")
    told(run_files, "write_result", "result")
    run()
    at = order.index("all is saved")
    assert order[at + 1 :] == ["lease", "page", "lease", "result"]


# ---------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def tab():
    """Returns a tab of a real browser."""
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.tab() as opened:
        yield opened


SMALL_TEXT = """
[...document.querySelectorAll("main *")].filter(e =>
    [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) &&
    parseFloat(getComputedStyle(e).fontSize) < 12).length
"""
# Of text on what is behind it, WCAG 2.1, the lowest of the page.
CONTRAST = """(() => {
  const context = document.createElement("canvas").getContext("2d");
  const rgba = css => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = css; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v =>
      v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const found = rgba(getComputedStyle(e).backgroundColor);
      if (found[3] == 255) return found;
    }
  };
  return Math.min(...[...document.querySelectorAll("main *")].filter(e =>
      [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
    .map(e => [light(rgba(getComputedStyle(e).color)), light(behind(e))])
    .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)));
})()"""


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(
    tab, tmp_path, case, size
):
    path, _ = written(tmp_path, **case)
    tab.open(path, *size)
    assert tab.value("document.querySelectorAll('section').length") >= 6
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    tab.value("document.querySelector('details').open = true")
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value(SMALL_TEXT) == 0
    assert tab.value("document.fonts.size") == 0
    assert tab.complaints() == []
    assert tab.requests() == [path.as_uri()]


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(tab, tmp_path, dark):
    path, _ = written(tmp_path)
    tab.open(path, 1280, 900, dark=dark)
    paper = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(15, 18, 22)") == dark
    assert tab.value(CONTRAST) >= 4.5


def test_the_best_step_is_marked_where_the_axis_says(tab, tmp_path):
    path, _ = written(tmp_path)
    tab.open(path, 1280, 900)
    # The run's steps are 0 to 4, and the best is 2.
    middle = (
        "(e => { const b = e.getBoundingClientRect(); return b.left + b.width / 2; })"
    )
    places = [
        tab.value(f"{middle}(document.querySelector('.plot {part}'))")
        for part in ("svg", "path.best", "span.best")
    ]
    assert places == pytest.approx([places[0]] * 3, abs=1)


def test_the_slider_moves_between_prediction_and_truth(tab, tmp_path):
    path, _ = written(tmp_path)
    tab.open(path, 1280, 900)
    clips = "[...document.querySelectorAll('.compare i')].slice(0, 4).map(e => getComputedStyle(e).clipPath)"
    before = tab.value(clips)
    for value in (0, 80, 100):
        tab.value(
            "(() => { const slider = document.querySelector('.compare input');"
            f"slider.value = {value}; slider.dispatchEvent(new Event('input')); }})()"
        )
        truth, prediction, *others = tab.value(clips)
        assert truth.endswith(f" {value}%)"), truth
        assert re.search(rf"[ (]{100 - value}%", prediction), prediction
        assert others == before[2:]  # Those of the next figure.


def test_a_hand_drags_the_slider_and_a_key_moves_it(tab, tmp_path):
    path, _ = written(tmp_path)
    tab.open(path, 1280, 900)
    where = "(() => { const slider = document.querySelector('.compare input'); slider.scrollIntoView(); const b = slider.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    left, top, width, height = tab.value(where)
    at = "document.querySelector('.compare').style.getPropertyValue('--at')"
    for kind, share in (
        ("mousePressed", 0.5),
        ("mouseMoved", 0.9),
        ("mouseReleased", 0.9),
    ):
        tab.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=left + share * width,
            y=top + height / 2,
            button="left",
            buttons=1,
            clickCount=1,
        )
    dragged = float(tab.value(at).removesuffix("%"))
    assert dragged == pytest.approx(90, abs=4)
    for kind in ("keyDown", "keyUp"):
        tab.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="ArrowLeft",
            code="ArrowLeft",
            windowsVirtualKeyCode=37,
        )
    assert float(tab.value(at).removesuffix("%")) < dragged


def test_an_evil_name_is_shown_as_it_is_written(tab, tmp_path):
    path, _ = written(tmp_path, names=(EVIL, "disc"))
    tab.open(path, 1280, 900)
    assert EVIL in tab.value("document.body.innerText")
    assert tab.value("document.scripts.length") == 1
    assert tab.told("Page.javascriptDialogOpening") == []


def test_a_script_that_got_in_would_not_run(tab, tmp_path):
    path, _ = written(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<main>", "<main><script>window.got=1</script>", 1))
    tab.open(path, 1280, 900)
    assert tab.value("window.got") is None
    assert tab.complaints()
