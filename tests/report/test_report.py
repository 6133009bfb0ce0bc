"""`write_report`: its numbers are those of the network, its pictures those of the samples, and its page is
one harmless file."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import mdlstm, succeed
from helpers.layouts import KINDS, samples, save, write
from helpers.training import SMALL, quick, run_in

from mdlstm_tk.data import Task
from mdlstm_tk.data.user_data import data_of_run
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.panels import Panel
from mdlstm_tk.report import draw_comparison, write_report
from mdlstm_tk.report.examples import SHOWN, WORST, look_at
from mdlstm_tk.report.plots import draw_panels
from mdlstm_tk.training import Run, evaluate, load_checkpoint, make_task
from mdlstm_tk.training.evaluation import add_up, measures_of

SCRIPT = "<script>document.title='taken over'</script>"
TABLE = re.compile(r"<h2>([^<]+)</h2>\s*<table>(.*?)</table>", re.DOTALL)


class Page(HTMLParser):
    """A page, of which every element must be closed."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.text = run.report.read_text()
        self.open, self.images, self.addresses = list[str](), list[bytes](), list[str]()
        self.feed(self.text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag != "script" and not any(name.startswith("on") for name in values)
        self.addresses += [values[name] or "" for name in ("src", "href") if name in values]
        if tag == "img":
            data = (values["src"] or "").removeprefix("data:image/png;base64,")
            self.images.append(base64.b64decode(data))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def table(self, title: str) -> dict[str, list[str]]:
        """The cells of the table below a heading, by the first of their row."""
        rows = dict(TABLE.findall(self.text))[title].split("</tr>")
        cells = [[html.unescape(text) for text in re.findall("<bdi>(.*?)</bdi>", row)] for row in rows[:-1]]
        return {first: rest for first, *rest in cells}


def shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a kind, or of the random diagonal, which has test data and measures of its own."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind == "diagonal":
        return run_in(folder / "run", SMALL, on_end=write_report)
    path = write(folder / "data", kind, "folder", samples(kind, 60))
    config = quick(path, kind, augment=0.0, validation=0.5)
    return run_in(folder / "run", config, on_end=write_report)


@pytest.mark.parametrize("run", [*KINDS, "diagonal"], indirect=True)
def test_a_page_has_the_measures_and_the_pictures_of_its_run(run: Run) -> None:
    page, result, checkpoint = Page(run), run.read_result(), load_checkpoint(run.best)
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.images[:2] == [run.curves.read_bytes(), run.prediction.read_bytes()]
    measures = page.table(f"Measures on {result['split']} data")
    assert {name.replace(" ", "_"): text for name, (text,) in measures.items()} == {
        name: shown(value) for name, value in result["errors"].items()
    }
    for name, of_output in result.get("outputs", {}).items():
        expected = [shown(np.nan if value is None else value) for value in of_output.values()]
        assert page.table("Measures of each output")[name] == expected
    task = make_task(checkpoint.config)
    task.spec, network = checkpoint.spec, checkpoint.network()
    evaluation = look_at(network, task, checkpoint.config.seed, network)
    assert evaluation is not None and evaluation.split == result["split"]
    assert evaluation.measures == evaluate(network, task, evaluation.split, checkpoint.config.seed)
    errors = [example.error for example in evaluation.worst]
    assert errors == sorted(errors, reverse=True) and 0 < len(errors) <= WORST
    panels = [panel.name for panel in evaluation.examples[0].panels]
    assert ("before training" in panels) == ("prediction" in panels) == (len(panels) > 1)
    assert len(page.images) == 2 + sum(len(example.panels) for example in evaluation.worst)


@pytest.mark.parametrize("run", ["classify", "grid"], indirect=True)
def test_examples_represent_the_split_and_the_worst_are_the_worst(run: Run) -> None:
    """A sample alone has the error of a split of it alone; and no more than one batch is read at once."""
    checkpoint = load_checkpoint(run.best)
    network, task, reads = checkpoint.network(), make_task(checkpoint.config), Counter[int]()
    whole: Any = task.sets["validation"]  # type: ignore[attr-defined]

    class Counted:
        def __len__(self) -> int:
            return 3 * len(whole)

        def __getitem__(self, k: int) -> Any:
            reads[k] += 1
            return whole[k % len(whole)]

    task.sets, total = {"test": Counted()}, 3 * len(whole)  # type: ignore[attr-defined]
    task.names = {"test": [str(k) for k in range(total)]}
    evaluation = look_at(network, task, 0)
    assert evaluation is not None and reads == Counter(range(total))
    spread, of_sample = [k * total // SHOWN for k in range(SHOWN)], {}
    names = [int(example.name) for example in evaluation.examples]
    assert names == (spread if len(evaluation.examples[0].panels) == 1 else spread[::3])
    for k in range(total):
        task.sets = {"test": [whole[k % len(whole)]]}  # type: ignore[attr-defined]
        of_sample[k] = next(iter(evaluate(network, task, "test").values()))
    others = sorted((k for k in of_sample if k not in spread), key=lambda k: of_sample[k], reverse=True)
    worst = [of_sample[k] for k in others[:WORST] if of_sample[k] > 0]
    assert [example.error for example in evaluation.worst] == pytest.approx(worst, rel=1e-4)
    assert [of_sample[int(example.name)] for example in evaluation.worst] == pytest.approx(worst, rel=1e-4)


def test_what_the_data_hold_stays_text(tmp_path: Path) -> None:
    names = [SCRIPT.replace("/", "∕"), "$dot$ & \u05d0\u4e00 " + "word " * 40]
    for k, (x, _) in enumerate(samples("classify")):
        save(tmp_path / "data" / names[k % 2] / f"<b>{k}&.png", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = run_in(tmp_path / "run", quick(tmp_path / "data", "classify"), on_end=write_report)
    assert {*names} <= {*Page(run).table("Measures of each output")}


def test_other_data_are_measured_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mdlstm_tk")
    old = write(tmp_path / "old", "segment", "folder")
    run = run_in(tmp_path / "run", quick(old, "segment", augment=0.0), on_end=write_report)
    assert "chosen the weights" in run.report.read_text()
    write_report(run)
    assert "name them with --data" in caplog.text and len(Page(run).images) == 1
    assert "Measures on validation data" in run.report.read_text()  # from result.json
    new = write(tmp_path / "new", "segment", "folder", samples("segment", 9, seed=1))
    done = succeed("report", run.folder, "--data", new, "-o", tmp_path / "new.html", "--json")
    values = json.loads(done.out)
    assert Path(values["path"]).stat().st_size == values["bytes"] and "measured alone" in done.err
    checkpoint = load_checkpoint(run.best)
    config = quick(new, "segment", augment=0.0)
    task = data_of_run(config, checkpoint.spec, checkpoint.state, kind_named("segment"))
    network = checkpoint.network()
    expected = evaluate(network, task, "test")
    run.report = tmp_path / "new.html"
    measures = Page(run).table("Measures on test data")
    assert {name: text for name, (text,) in measures.items()} == {k: shown(v) for k, v in expected.items()}
    assert mdlstm("report", run.folder, "--data", new, "-o", tmp_path / "new.html").code == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_decides_what_other_data_mean(kind: str, tmp_path: Path) -> None:
    """What it has learned is left out, and nothing else: one sample, of one class, of grey images or of
    colours, is measured by the outputs of the run."""
    content = samples(kind, 24)
    content = [(np.stack([x, x, x // 2], -1), y) for x, y in content]
    old = write(tmp_path / "old", kind, "folder", content)
    run = run_in(tmp_path / "run", quick(old, kind, augment=0.0))
    best = load_checkpoint(run.best)
    known = {split: {*make_task(best.config).names[split]} for split in ("train", "validation")}

    def measured(name: str, some: list[Any], names: list[str] | None = None) -> Task:
        data = write(tmp_path / name, kind, "folder", some, names)
        return data_of_run(quick(data, kind), best.spec, best.state, kind_named(kind))

    other = samples(kind, 40, seed=1)
    for k in range(3):  # alone, each of another class
        task = measured(f"one {k}", other[k : k + 1])
        (batch,) = task.evaluation_batches("test", 0)
        assert batch.x.shape[-1] == task.spec.channels == 3 and task.count("test") == 1
        assert measures_of(task, add_up(best.network(), task, "test"))
        if kind == "regress":
            assert batch.y[0].tolist() == pytest.approx([*other[k][1].values()])
        elif kind == "classify":
            assert task.spec.classes[batch.y[0]] == other[k][1]
        elif kind == "segment":
            assert np.array_equal(np.array(task.spec.decoding["mask_values"])[batch.y[0]], other[k][1])
    names = [f"a{k}" if k % 4 else f"b{k}" for k in range(24)]
    of_run = {
        split: [k for k, n in enumerate(names) if any(n == Path(f).stem for f in known[split])]
        for split in known
    }
    mixed = [*(content[k] for k in of_run["train"][:3]), *(content[k] for k in of_run["validation"][:2])]
    assert measured("chose", mixed).count("validation") == 2
    assert measured("mixed", [*mixed, *other[:4]]).count("test") == 4
    with pytest.raises(InputError, match="learned"):
        measured("learned", mixed[:3])
    unknown: Any = {"classify": "stranger", "tag": ["stranger"], "segment": np.full_like(other[0][0], 99)}
    if kind in unknown:
        stranger = (other[0][0], unknown[kind])
        assert measured("stranger", [stranger, *other[:4]]).count("test") == 4


def test_a_run_without_held_out_data_or_metrics_has_a_page(tmp_path: Path) -> None:
    data = write(tmp_path / "data", "regress", "arrays")
    run = run_in(tmp_path / "run", quick(data, "regress", augment=0.0, validation=0.0), on_end=write_report)
    page = Page(run)
    assert page.images == [run.curves.read_bytes()]
    assert page.table("Settings other than the defaults")["validation"] == ["0"]
    run.metrics.unlink()
    write_report(run)
    assert Page(run).images == []


@pytest.mark.parametrize("shape", [(5, 7), (4, 20)])
def test_pictures_stand_under_their_names_in_rows(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("mdlstm_tk.report.plots._save", lambda figure, path: figures.append(figure))
    panels = [
        Panel(
            f"panel {k}\n" + k * "word " * 9, np.full((*shape, 3), k, np.uint8), None, {f"c{k}": (k, 0, 9)}
        )
        for k in range(7)
    ]
    draw_panels(Path("a.png"), "$title", [[panel] for panel in panels])
    draw_panels(Path("b.png"), "", [panels[:3], panels[3:6]])
    shared, own = figures
    columns = 2 if shape[1] > 3 * shape[0] else 4
    for figure, among, many in ((shared, panels, columns), (own, panels[:6], 3)):
        assert figure.axes[0].get_gridspec().ncols == many
        for panel, axis in zip(among, figure.axes, strict=False):
            assert np.array_equal(axis.images[0].get_array(), panel.image)
            title = axis.get_title().split("\n")
            assert title[0] == panel.name.split("\n")[0] and len(title) <= 4
            assert (title[-1] == "…") == (panel.name.count("word") > 21)
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == [f"c{k}" for k in range(len(among))]


def running_mean(values: Any) -> list[float]:
    """The mean of each value and up to 19 before it."""
    return [values[max(k - 19, 0) : k + 1].mean() for k in range(len(values))]


def test_the_networks_of_a_comparison_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no others, such as those of more seeds from before."""
    figures: list[Any] = []
    monkeypatch.setattr("mdlstm_tk.report.plots._save", lambda figure, path: figures.append(figure))
    rng, lengths = np.random.default_rng(0), {"md": (30, 25), "lab/net": (30, 30), "old": (30,)}
    losses = {model: [rng.random(n) for n in counts] for model, counts in lengths.items()}
    for model, seeds in losses.items():
        for seed, values in enumerate(seeds, 7):
            run = Run(tmp_path / f"{model}-{seed}")
            run.folder.mkdir(parents=True)
            pairs = enumerate(values.tolist(), 1)
            records = [{"step": k, "loss": v, "validation": {"relevant": v}} for k, v in pairs]
            run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    losses.pop("old")
    summary = {name: {"seeds": [7, 8]} for name in losses} | {"k-NN": {"error": [0.5]}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert [path.name for path in draw_comparison(tmp_path)] == ["loss.png", "relevant.png"]
    for figure, of in zip(figures, (running_mean, np.asarray), strict=True):
        for line, (model, seeds) in zip(figure.axes[0].lines, losses.items(), strict=True):
            shortest = min(map(len, seeds))
            assert line.get_label() == model
            expected = np.median([of(values[:shortest]) for values in seeds], axis=0)
            np.testing.assert_allclose(line.get_ydata(), expected)
