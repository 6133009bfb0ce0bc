"""Tiled models on files: what is read and written by region, interruptions, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiled_models import PALETTE, VALUES, classifier, recogniser, segmenter, single

from mdlstm_tk.errors import MDLSTMError, MissingExtraError, require
from mdlstm_tk.runtime import TiledSession, decode, infer_paths
from mdlstm_tk.runtime.answers import ResultOptions
from mdlstm_tk.runtime.io.files import publish
from mdlstm_tk.runtime.jobs import InputPath, plan_jobs
from mdlstm_tk.runtime.postprocessing import probabilities
from mdlstm_tk.runtime.shapes import covered_width
from mdlstm_tk.runtime.tiles import files as tiled_files
from mdlstm_tk.runtime.tiles.files import infer_tiled
from mdlstm_tk.runtime.tiles.local import State

tifffile: Any = pytest.importorskip("tifffile")
zarr: Any = pytest.importorskip("zarr")

PIXELS = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
X = PIXELS / np.float32(255)
SCRATCH = ".y.npy.mdlstm-scratch"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run(source: str, target: str = "y.npy", model: Any = segmenter, **options: Any) -> Any:
    """Run a model on a file, and return the outcome."""
    results = ResultOptions(options.pop("probabilities", False))
    session_options = options.pop("session", {})
    options.setdefault("tile", 16)
    form = options.pop("form", target.rpartition(".")[2] if target != "-" else "txt")
    fields = {name: options.pop(name) for name in ("replace", "content") if name in options}
    with TiledSession(model().path, "cpu", **session_options) as session:
        files = [InputPath(source, source)]
        (job,) = plan_jobs(files, session.metadata, target, form, results, is_single=True)
        job = job._replace(**fields)
        (outcome,) = infer_tiled(session, [job], options=results, **options)
    return outcome


def listed() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def write_zarr(path: str) -> None:
    store = zarr.storage.LocalStore(path)
    zarr.create_array(store, shape=X.shape, chunks=(16, 16, 3), dtype=X.dtype)[:] = X


def write_pyramid(path: str) -> None:
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(np.zeros((90, 140, 3), np.uint8), subifds=1, tile=(16, 16), photometric="rgb")
        file.write(PIXELS, subfiletype=1, tile=(16, 16), photometric="rgb")


def tif(pixels: Any = PIXELS, **options: Any) -> Any:
    return lambda path: tifffile.imwrite(path, pixels, **{"photometric": "rgb", **options})


SOURCES: dict[str, tuple[str, Any]] = {
    "npy": ("x.npy", lambda path: np.save(path, X)),
    "Fortran order": ("x.npy", lambda path: np.save(path, np.asfortranarray(X))),
    "big-endian": ("x.npy", lambda path: np.save(path, X.astype(">f8"))),
    "zarr": ("x.zarr", write_zarr),
    "zarr whose name looks like a chain of URLs": ("a::x.zarr", write_zarr),
    "tiled": ("x.tif", tif(tile=(16, 32), compression="zlib")),
    "plain": ("x.tiff", tif()),
    "strips": ("x.tif", tif(rowsperstrip=7, compression="zlib")),
    "BigTIFF": ("x.tif", tif(bigtiff=True, byteorder=">", tile=(32, 16))),
    "pyramid": ("x.ome.tif", write_pyramid),
}


@pytest.mark.parametrize("name", SOURCES)
def test_files_are_read_by_region(name: str) -> None:
    """Every kind of file gives the same mask, which keeps values and palette."""
    source, write = SOURCES[name]
    write(source)
    assert run(source, "y.tif", level=int(name == "pyramid")).error is None
    expected = np.asarray(VALUES)[segmenter().whole(X).argmax(-1)]
    with tifffile.TiffFile("y.tif") as file:
        np.testing.assert_array_equal(file.asarray(), expected)
        assert file.pages[0].is_tiled and file.pages[0].photometric.name == "PALETTE"
        colours = np.asarray(file.pages[0].colormap)[:, list(VALUES)].T // 257
        np.testing.assert_array_equal(colours.ravel(), PALETTE)
    from PIL import Image

    np.testing.assert_array_equal(np.asarray(Image.open("y.tif")), expected)
    assert listed() == sorted([source, "y.tif"])  # no scratch is left


@pytest.mark.parametrize("target", ["y.npy", "y.zarr", "p.npy", "p.tif"])
def test_results_are_written_by_region(target: str) -> None:
    np.save("x.npy", X)
    expected = segmenter().whole(X)
    is_probable = target.startswith("p")
    outcome = run("x.npy", target, probabilities=is_probable, session={"threads": 3})
    assert outcome.error is None
    load = {"npy": np.load, "zarr": lambda path: zarr.open_array(path)[:], "tif": tifffile.imread}
    y = load[target.rpartition(".")[2]](target)
    np.testing.assert_allclose(
        y, probabilities(expected) if is_probable else expected, atol=1e-5, strict=True
    )
    assert run("x.npy", target, probabilities=is_probable).error is None  # replaces it


def test_axes_of_results_are_those_of_the_array() -> None:
    """One output has an axis where the one channel of x has one, as in a run on the whole grid."""
    x = np.random.default_rng(0).random((9, 12), dtype=np.float32)
    for values in (x, x[..., None]):
        np.save("x.npy", values)
        run("x.npy", model=single, tile=4)
        expected = TiledSession(single().path, "cpu")(values, tile=4)
        np.testing.assert_allclose(np.load("y.npy"), expected, strict=True)
        assert expected.shape == values.shape


def test_the_answer_for_a_grid_that_is_averaged_over() -> None:
    x = np.random.default_rng(0).random((20, 31), dtype=np.float32)
    np.save("x.npy", x)
    (answer,) = run("x.npy", "-", model=classifier).answers
    label = ("cat", "dog", "bird")[classifier().whole(x[..., None]).argmax()]
    assert label in str(answer)


def test_what_is_not_finished_of_answers_lies_beside_their_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x.npy", "z.npy"):
        np.save(name, np.zeros((20, 31), np.float32))
    folders = set[Path]()
    infer_file = tiled_files._infer_file

    def follow(session: Any, file: Any, *arguments: Any) -> Any:
        folders.add(file.scratch.parent)
        return infer_file(session, file, *arguments)

    monkeypatch.setattr(tiled_files, "_infer_file", follow)
    Path("out").mkdir()
    list(infer_paths(["x.npy", "z.npy"], classifier().path, "out/t.csv").results)
    assert folders == {Path("out").resolve()}


def test_places_of_characters_are_those_of_a_run_on_the_whole_grid() -> None:
    """They are in columns of the source rather than in steps."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 61), np.uint8)
    x = pixels / np.float32(255)
    np.save("x.npy", x)
    tifffile.imwrite("x.tif", pixels)
    metadata = TiledSession(recogniser().path, "cpu").metadata
    y = recogniser().whole(x[..., None])
    (expected,) = decode(y, metadata, width=covered_width(len(y), columns=61, width=61)[0])
    characters = expected.details()["characters"]
    assert len(y) < characters[-1]["right"] < 61
    for source in ("x.npy", "x.tif"):
        (answer,) = run(source, "-", model=recogniser).answers
        places = [[each[side] for side in ("left", "right")] for each in answer.details()["characters"]]
        assert places == [[each[side] for side in ("left", "right")] for each in characters]


PROGRAM = """
import sys
from mdlstm_tk.runtime import TiledSession
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.tiles.files import infer_tiled
session, jobs = TiledSession(sys.argv[1], "cpu"), [Job("x.npy", "y.npy", "npy")]
for outcome in infer_tiled(session, jobs, tile=8, resume=sys.argv[2] == "True"):
    print(outcome.error)
"""


def start(*, resume: bool = False) -> subprocess.Popen[bytes]:
    """Start a run of the segmenter in another process, and wait until it has noted some steps."""
    np.save("x.npy", np.random.default_rng(1).random((200, 220, 3), dtype=np.float32))
    command = [sys.executable, "-c", PROGRAM, str(segmenter().path), str(resume)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while process.poll() is None and len(list(Path().glob(f"{SCRATCH}/*-*.npy"))) < 8:
        time.sleep(0.01)
    return process


def test_a_killed_run_goes_on_to_the_same_bytes() -> None:
    process = start()
    with pytest.raises(MDLSTMError, match=r"another process works in .*output=\.\.\."):
        run("x.npy", tile=8, resume=True)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert listed() == [SCRATCH, "x.npy"]
    assert "go on with resume=True" in run("x.npy", tile=8).error
    assert "another tile" in run("x.npy", resume=True).error
    done: list[int] = []
    outcome = run("x.npy", tile=8, resume=True, report=lambda n, total: done.append(n))
    assert outcome.error is None and done[0] > 1
    assert listed() == ["x.npy", "y.npy"]
    expected = TiledSession(segmenter().path, "cpu")(np.load("x.npy"), tile=8)
    np.testing.assert_array_equal(np.load("y.npy"), expected)


@pytest.mark.parametrize("resume", [False, True])
def test_an_interrupt_leaves_nothing_unless_it_can_go_on(resume: bool) -> None:
    process = start(resume=resume)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert b"KeyboardInterrupt" in err
    assert listed() == [*([SCRATCH] if resume else []), "x.npy"]
    if resume:  # or start over
        assert run("x.npy", force=True).error is None
        assert listed() == ["x.npy", "y.npy"]


def test_what_holds_no_state_is_not_gone_on_with() -> None:
    np.save("x.npy", X)
    Path(SCRATCH).mkdir()
    Path(SCRATCH, "result").write_bytes(b"of another version")
    assert run("x.npy", resume=True).error is None
    np.testing.assert_array_equal(np.load("y.npy"), TiledSession(segmenter().path, "cpu")(X, tile=16))


@pytest.mark.parametrize("target", ["y.npy", "y.zarr"])
def test_an_interrupt_after_the_result_has_its_name_costs_no_result(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("x.npy", X)

    def publish_only(*arguments: Any, **options: Any) -> None:
        publish(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mdlstm_tk.runtime.tiles.outputs.publish", publish_only)
        with pytest.raises(KeyboardInterrupt):
            run("x.npy", target, resume=True)
    assert run("x.npy", target, resume=True, force=True).error is None
    y = np.load(target) if target.endswith("npy") else zarr.open_array(target)[:]
    np.testing.assert_array_equal(y, TiledSession(segmenter().path, "cpu")(X, tile=16))


@pytest.mark.parametrize("target", ["y.npy", "y.tif"])
def test_a_file_that_appears_during_a_run_is_kept_and_so_is_what_was_computed(target: str) -> None:
    np.save("x.npy", X)
    Path("deep").mkdir()
    Path(f"deep/{target}").write_bytes(b"mine")
    Path(target).symlink_to(f"deep/{target}")
    outcome = run("x.npy", target, replace=False)
    assert "exists; " in outcome.error and "force=True and resume=True" in outcome.error
    assert Path(target).read_bytes() == b"mine"
    Path(target).chmod(0o600)
    done: list[int] = []
    outcome = run("x.npy", target, resume=True, report=lambda n, total: done.append(n))
    assert outcome.error is None and not done
    assert Path(target).is_symlink() and Path(f"deep/{target}").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in Path("deep").iterdir()] == [target]


def interrupt(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> None:
    """A run that ends before its result gets its name, and that can go on."""
    segmenter()  # is verified with `Work.finish`
    with monkeypatch.context() as patch:
        patch.setattr("mdlstm_tk.runtime.tiles.work.Work.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*arguments, resume=True, **options)


def test_a_chunk_that_changes_ends_the_continuation_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    write_zarr("x.zarr")
    interrupt(monkeypatch, "x.zarr")
    zarr.open_array("x.zarr")[:16, :16] = 0
    assert "what was interrupted had another state of the source" in run("x.zarr", resume=True).error


def test_another_file_of_equal_size_and_time_is_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, values in (("a", X), ("b", 1 - X)):
        Path(folder).mkdir()
        np.save(f"{folder}/x.npy", values)
        os.utime(f"{folder}/x.npy", (0, 0))
    interrupt(monkeypatch, "a/x.npy")
    error = run("b/x.npy", resume=True).error
    assert "another source" in error and "a/x.npy" in error and "b/x.npy" in error
    Path("link.npy").symlink_to("a/x.npy")
    assert run("link.npy", resume=True).error is None


@pytest.mark.parametrize(
    "options", [{"form": "zarr"}, {"probabilities": True}, {"content": "answers"}], ids=str
)
def test_a_run_does_not_go_on_to_another_content(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("x.npy", X)
    interrupt(monkeypatch, "x.npy", "y", form="npy")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    error = run("x.npy", "y", resume=True, **{"form": "npy", **options}).error
    assert "what was interrupted had another" in error and "start over with force=True" in error
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def old_zarr(path: str) -> None:
    zarr.create_array(path, shape=(8, 8, 3), dtype="f4", zarr_format=2)


def damaged_tif(path: str) -> None:
    tif(tile=(16, 16), compression="zlib")(path)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[3]
    data = bytearray(Path(path).read_bytes())
    data[offset : offset + 40] = bytes(40)
    Path(path).write_bytes(data)


def saved(x: Any) -> Any:
    return lambda path: np.save(path, x)


BAD: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "no file": ("none.npy", None, {}, "there is no file"),
    "a folder": ("x.npy", lambda path: Path(path).mkdir(), {}, "cannot read x.npy: Is a directory"),
    "stdin": ("-", None, {}, "by region"),
    "another type": ("x.png", lambda path: Path(path).touch(), {}, "reads .npy, .zarr"),
    "an incomplete npy": ("x.npy", lambda path: Path(path).write_bytes(b"\x93NUMPY"), {}, "not a complete"),
    "texts": ("x.npy", saved(np.array(["a"])), {}, "expected real numbers"),
    "objects": ("x.npy", saved(np.array([None])), {}, "array of numbers"),
    "a level of a npy": ("x.npy", saved(X), {"level": 1}, "level=... names a level of a TIFF"),
    "zarr 2": ("x.zarr", old_zarr, {}, "of format 3"),
    "no zarr": ("x.zarr", lambda path: Path(path).mkdir(), {}, "no zarr array"),
    "no TIFF": ("x.tif", lambda path: Path(path).write_bytes(b"II*\0"), {}, "cannot be read as a TIFF"),
    "a corrupt TIFF": ("x.tif", damaged_tif, {}, "cannot read x.tif"),
    "a stack": (
        "x.tif",
        tif(np.zeros((9, 30, 40), np.uint8), photometric=None, metadata={"axes": "ZYX"}),
        {},
        "the axes ZYX",
    ),
    "planes": ("x.tif", tif(np.moveaxis(PIXELS, -1, 0), planarconfig="separate"), {}, "the axes SYX"),
    "a turned image": ("x.tif", tif(extratags=[(274, "H", 1, 6, True)]), {}, "the orientation 6"),
    "colours that no decoder converts": (
        "x.tif",
        tif(photometric="ycbcr"),
        {},
        "cannot be read by region",
    ),
    "a level too many": ("x.tif", tif(), {"level": 3}, "levels 0 to 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str) -> None:
    source, write, options, words = BAD[name]
    if write:
        write(source)
    before = listed()
    error = run(source, **options).error
    assert words in error and "\n" not in error, error
    assert listed() == before


def test_a_package_that_a_tiff_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> Any:
        return require(module if module == "tifffile" else "no_such_package", extra)

    tif(tile=(16, 16), compression="zlib")("x.tif")
    monkeypatch.setattr("mdlstm_tk.runtime.tiles.tif.require", missing)
    with pytest.raises(MissingExtraError, match="no_such_package"):
        run("x.tif")


def test_a_source_that_shrinks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", X)
    save = State.save

    def shrink(*arguments: Any) -> None:
        os.truncate("x.npy", 2000)
        save(*arguments)

    monkeypatch.setattr(State, "save", shrink)
    assert "cannot read x.npy" in run("x.npy").error
    assert listed() == ["x.npy"]


@pytest.mark.parametrize("target", ["y.npy", "y.zarr", "y.tif"])
def test_a_full_disk_is_one_line(target: str) -> None:
    resource: Any = pytest.importorskip("resource")
    np.save("x.npy", X)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # exceeding it raises, as a full disk does
    try:
        with pytest.raises(MDLSTMError, match="File too large"):
            run("x.npy", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert listed() == ["x.npy"]
