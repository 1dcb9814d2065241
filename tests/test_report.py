"""The page of a run: its numbers are those of the records, it stands alone, and it can be seen."""

import collections
import dataclasses
import html.parser
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

from resnet_jax import main
from resnet_jax.report import comparison, findings, plots
from resnet_jax.report import page as page_lib
from resnet_jax.report.page import write_report
from resnet_jax.runs.terminal import duration
from resnet_jax.training.restore import load_run

PNGS = {
    *("accuracy", "loss", "learning_rate", "speed", "confusion", "reliability"),
    *("mistakes", "examples", "filters"),
}


class Page(html.parser.HTMLParser):
    """What is on a page: terms with their numbers, tables by id, marked texts, and addresses."""

    def __init__(self, text):
        super().__init__()
        self.terms, self.tables, self.marked, self.addresses = {}, {}, {}, []
        self.images = self._table = self._mark = None
        self._texts = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        for name in ("src", "href", "xlink:href", "action"):
            if name in attributes:
                self.addresses.append(attributes[name])
        if tag == "table":
            self._table = self.tables.setdefault(attributes.get("id"), [])
        elif tag == "tr":
            self._table.append([])
        self._texts = []
        self._mark = attributes.get("id")

    def handle_data(self, data):
        self._texts.append(data)

    def handle_endtag(self, tag):
        text = "".join(self._texts).strip()
        if tag == "dt":
            self._term = text
        elif tag == "dd":
            self.terms[self._term] = text
        elif tag in ("td", "th"):
            self._table[-1].append(text)
        elif tag == "span" and self._mark:
            self.marked[self._mark] = text


@pytest.fixture(scope="module")
def page(plain_run, tmp_path_factory):
    run = shutil.copytree(plain_run[0], tmp_path_factory.mktemp("page") / "plain")
    path = write_report([run])
    return path, Page(path.read_text())


def test_the_numbers_are_those_of_the_records(page, plain_run):
    _, final, state = plain_run
    _, found = page
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert found.terms == {
        "final test accuracy": f"{final['test_accuracy']:.2f} %",
        "best test accuracy": f"{final['best_test_accuracy']:.2f} %",
        "train accuracy": f"{final['train_accuracy']:.2f} %",
        "best validation accuracy": f"{final['best_score']:.2f} %",
        "test loss": f"{final['test_loss']:.4f}",
        "epochs": f"3, the best {final['best_epoch']:g}",
        "time": duration(final["seconds"]),
        "parameters": f"{parameters:,}",
        "MACs an image": f"{16 * 16 * 49 * 3 * 8 + 2 * 8 * 8 * 9 * 8 * 8 + 8 * 10:,}",
    }
    assert found.marked["tested"] == f"{final['best_test_accuracy']:.2f} %"
    changed = dict(found.tables["config"])
    assert changed["batch_size"] == "120"
    assert changed["optimizer.options.momentum"] == "0.9"


def test_classes_are_scored_as_the_model_predicts(page, plain_run):
    model, variables, info, config = load_run(plain_run[0])
    test = tiny_run.sample().test
    x = (test.images / np.float32(255) - np.float32(config.data.mean)) / np.float32(config.data.std)
    predicted = np.asarray(model.apply(variables, x, train=False)).argmax(-1)
    for label, row in enumerate(page[1].tables["classes"][1:]):
        recall = 100 * (predicted[test.labels == label] == label).mean()
        accuracy = 100 * ((predicted == label) == (test.labels == label)).mean()
        assert row[:2] == [info.class_names[label], "32"]
        assert row[3:] == [f"{recall:.2f}", f"{accuracy:.2f}"]


def test_it_stands_alone(page):
    path, found = page
    text = path.read_text()
    assert path.stat().st_size < 3e6
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert text.count('<figure role="img" aria-label="') == text.count("<svg ") == len(PNGS)
    assert "currentColor" in text
    for name in PNGS:
        assert min(Image.open(path.parent / f"{name}.png").size) > 50


def test_names_are_text_and_escaped_where_they_are_none(
    plain_run, tmp_path, monkeypatch, capfd, recwarn
):
    name, run = "<script>alert(1)</script> $x^$ & \\frac{", findings.read(plain_run[0])
    names = (name, "b\udcff", "日本", *run.info.class_names[3:])
    info = dataclasses.replace(run.info, class_names=names)
    named = dataclasses.replace(run, info=info, name="_$hidden$")
    monkeypatch.setattr(findings, "read", lambda folder: named)
    text = write_report([shutil.copytree(plain_run[0], tmp_path / "run")]).read_text()
    assert "<script" not in text
    found = [row[0] for row in Page(text).tables["classes"]][1:4]
    assert found == [name, r"b\udcff", "日本"]
    assert capfd.readouterr().err == ""
    assert not [w for w in recwarn if "Glyph" in str(w.message)], "no warnings of missing glyphs"


def test_without_images_the_page_says_why(plain_run, monkeypatch):
    from resnet_jax.errors import UserError

    def refuse(task):
        raise UserError("no images here")

    monkeypatch.setattr(findings, "load_run_dataset", refuse)
    run = findings.read(plain_run[0])
    found, _, problem = findings.find(run, plain_run[0], None)
    assert found is None
    text = page_lib._render([run], None, problem, collections.defaultdict(str))
    assert "Not scored: no images here." in text
    assert "Confusion" not in text


@pytest.mark.parametrize(
    ("fields", "which", "problem"),
    [
        ({"evaluate.score_test": False}, "best", "the test set is left alone"),
        ({"evaluate.split": "test", "evaluate.select_on_test": True}, "best", ""),
        ({"evaluate.split": "test"}, "last", ""),
    ],
)
def test_the_checkpoint_is_named_for_who_chose_it(plain_run, monkeypatch, fields, which, problem):
    run = altered(findings.read(plain_run[0]), "run", **fields)
    monkeypatch.setattr(findings, "_findings", lambda *_: None)
    found, _, why = findings.find(run, plain_run[0], tiny_run.sample())
    assert found is None and problem in why
    drawn = collections.defaultdict(str)
    text = page_lib._render([run], None, why, drawn)
    assert f"The {which} checkpoint on the test images" in text


def altered(run, name, **fields):
    """Returns a run with another name, other fields of its config and other closing numbers."""
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {field: fields[field] for field in fields if field != "final"}
    )
    final = run.records[-1] | fields.get("final", {})
    records = [*run.records[:-1], final]
    return dataclasses.replace(run, name=name, config=config, records=records)


def test_a_run_whose_test_set_is_left_alone_has_its_numbers_too(plain_run):
    unknown = dict.fromkeys(("test_loss", "test_accuracy", "best_test_accuracy"))
    run = altered(findings.read(plain_run[0]), "beaten", final=unknown)
    assert "test loss" not in page_lib._results(run)
    with plots.style():
        (axes,) = plots.metric_curves([run], "loss").axes
    assert axes.get_legend_handles_labels()[1] == ["train", "validation"]


def test_a_legend_names_each_of_several_runs_once(plain_run):
    one = findings.read(plain_run[0])
    runs = [altered(one, f"resnet_small-optimizer.learning_rate={n}") for n in range(3)]
    runs[2].records[:] = runs[2].of("train")  # not scored yet
    with plots.style():
        (axes,) = plots.metric_curves(runs, "accuracy").axes
    assert axes.get_legend_handles_labels()[1] == ["…ate=0", "…ate=1", "…ate=2"]
    long = [altered(one, f"{n}{'x' * 80}") for n in range(2)]
    assert len({*plots._names(long)}) == 2
    assert {len(name) for name in plots._names(long)} == {70}


def test_an_unfinished_run_shows_how_far_it_is_and_leaves_the_test_images_alone(plain_run):
    run = findings.read(plain_run[0])
    run.records[:] = [record for record in run.records if record["kind"] != "final"]
    shown = page_lib._results(run)
    assert shown["state"] == "not finished" and shown["epochs"] == "3 of 3"
    assert shown["last validation accuracy"].endswith(" %")
    assert "not finished" in findings.find(run, plain_run[0], tiny_run.sample())[2]


def test_seeds_have_mean_and_deviation(plain_run):
    one = findings.read(plain_run[0])
    accuracies = [10.0, 12.0, 17.0]
    runs = [
        altered(one, f"seed{n}", seed=n, final={"test_accuracy": a})
        for n, a in enumerate(accuracies)
    ]
    other = altered(one, "rich", **{"optimizer.name": "adam", "num_epochs": 7})
    rows = comparison.compare([*runs[:2], other, runs[2]])
    assert [row.name for row in rows] == [
        *("seed0", "seed1", "seed2", "mean ± std of 3 seeds"),
        "rich",
    ]
    place = [column.header for column in comparison.COLUMNS].index("final test %")
    assert rows[3].cells[place] == f"13.00 ± {np.std(accuracies, ddof=1):.2f}"
    assert rows[3].cells[0] == rows[0].cells[0] == "2,466"
    runs[1] = dataclasses.replace(runs[1], info=dataclasses.replace(one.info, digest="other"))
    assert "mean ± std of 2 seeds" in [row.name for row in comparison.compare(runs)]
    assert "optimizer.name=adam" in rows[-1].differs
    assert "seed=2" in rows[2].differs


def test_mode_report_compares_runs(plain_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "_findings", lambda *_: None)  # images have tests of their own
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    copy = tmp_path / "copy"
    shutil.copytree(plain_run[0], copy)
    assert main.main(["resnet-jax", "--mode=report", f"--workdir={copy}", str(plain_run[0])]) == 0
    page = Page((copy / "report" / "index.html").read_text())
    assert capsys.readouterr().out.endswith("report/index.html\n")
    rows = {row[0]: row for row in page.tables["comparison"]}
    for name in ("plain", "copy"):
        assert f"{plain_run[1]['test_accuracy']:.2f}" in rows[name]
        assert f"{plain_run[1]['best_test_accuracy']:.2f}" in rows[name]
    assert main.main(["resnet-jax", "--mode=report", f"--workdir={tmp_path}"]) == 2
    assert "holds no checkpoint of a run" in capsys.readouterr().err


def test_a_training_ends_with_its_report(tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setattr("resnet_jax.report.page.write_report", told.append)
    monkeypatch.setattr("resnet_jax.training.loop.train_and_evaluate", lambda *_, **__: None)
    flags = f"--config={tiny_run.CONFIG_FILE}", f"--workdir={tmp_path / 'run'}"
    assert main.main(["resnet-jax", *flags]) == 0
    assert told == []
    assert main.main(["resnet-jax", *flags, "--config.log.report=True"]) == 0
    assert told == [[str(tmp_path / "run")]]
    monkeypatch.setattr("resnet_jax.hosts.is_first", lambda: False)
    assert main.main(["resnet-jax", *flags, "--config.log.report=True"]) == 0
    assert len(told) == 1


def test_without_the_extra_a_line_says_so(plain_run, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "resnet_jax.report.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main.main(["resnet-jax", "--mode=report", f"--workdir={plain_run[0]}"]) == 2
    assert "pip install 'resnet-flax-cifar[report]'" in capsys.readouterr().err


def test_reported_figures_are_those_of_the_headers():
    from resnet_jax.config.load import CONFIGS, load

    for path in sorted(CONFIGS.glob("*.py")):
        header = path.read_text().split('"""')[1]
        for variant in re.findall(rf"{path.stem}\.py:?([\w.]*)", header):
            figure = load(f"{path}:{variant}" if variant else str(path)).reported_accuracy
            assert not figure or f"{figure:g}" in header, (path.name, variant)


@pytest.fixture
def browser():
    """Returns the path of a Chromium."""
    return shutil.which("chromium") or pytest.skip("there is no Chromium")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (500, False)])
def test_as_a_browser_shows_it(page, browser, tmp_path, width, dark):
    picture, scheme = tmp_path / "page.png", ["--blink-settings=preferredColorScheme=0"] * dark
    size = f"--window-size={width},3000"
    quiet = "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"
    command = [browser, *quiet, *scheme, size, f"--screenshot={picture}", page[0].as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(picture).convert("RGB"), float)
    assert pixels.shape == (3000, width, 3)
    back = pixels[5, 5].mean()
    assert back < 50 if dark else back > 200
    colours = pixels.max(-1) - pixels.min(-1)
    for top in range(0, 3000, 500):  # something is drawn everywhere, within the margins
        assert pixels[top : top + 500].std() > 2
        assert np.ptp(pixels[top : top + 500, :8], axis=(0, 1)).max() == 0
        assert np.ptp(pixels[top : top + 500, -8:], axis=(0, 1)).max() == 0, "wider than the window"
    assert (colours > 60).mean() > 0.003, "curves have colours"
