"""The time of a prediction in the browser page, for files of one checkout or of several in turn.

    python benchmarks/browser.py                             # the files of this checkout
    python benchmarks/browser.py ../before .                 # those of both, in turn
    python benchmarks/browser.py --web-runtime onnxruntime-web-1.30.0.tgz --webgpu

Each checkout exports a layer of 32 units in all directions, for one channel, in both forms. This checkout
writes the pages, and headless Chromium opens each in a tab. The tabs then take turns: each calls the
function of its page that predicts, for one random grid of 64×64.

With `--webgpu`, copies of the pages run the files by onnxruntime-web's WebGPU provider, too, which takes a
package given by `--web-runtime`. Without a GPU, Chromium computes WebGPU on the processor (SwiftShader).
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from playwright.sync_api import Browser, expect

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.browser import ARGUMENTS, Tab, find_chromium, launched, opened, served
from measuring import ROOT, argument_parser, markdown, python

from mdlstm_tk._util.text import printable
from mdlstm_tk.export.browser.build import load_runtime, write_page
from mdlstm_tk.export.browser.examples import PageExample

Key = tuple[str, str, str]  # checkout, form and provider

EXTENT = 64
EXPORT = """
import sys, torch
from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
torch.manual_seed(0)
layer = MDLSTM(1, 32, directions="all")
for form, grid in (("unrolled", (int(sys.argv[2]),) * 2), ("scan", None)):
    export_onnx(layer, f"{sys.argv[1]}/{form}.onnx", grid=grid, form=form)
"""
FORMS = ("unrolled", "scan")
PATIENCE = 120.0  # seconds until a page that has not predicted counts as broken
WEBGPU_ARGUMENTS = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
WEBGPU_FILES = (
    "ort.jspi.bundle.min.mjs",  # the build "asyncify" does not return from loading these models
    "ort-wasm-simd-threaded.jspi.mjs",
    "ort-wasm-simd-threaded.jspi.wasm",
)
COLUMNS = ("checkout", "form", "provider", "ms", "÷ first", "KiB")
LOAD = "import('./model.js').then((page) => page.loadModel()).then((model) => { window.model = model; })"
PREDICT = "model.predict(model.examples[0].x).then((result) => result.y.data.join())"
TIME = "model.predict(model.examples[0].x).then((result) => result.milliseconds)"


def make_pages(
    checkouts: list[Path], runtime: dict[str, bytes], webgpu: Path | None, folder: Path
) -> Iterator[tuple[Key, Path]]:
    """The pages, by checkout, form and provider."""
    x = np.random.default_rng(0).random((EXTENT, EXTENT, 1), np.float32)
    for number, checkout in enumerate(checkouts):
        files = folder / str(number)
        files.mkdir()
        python("-c", EXPORT, files, EXTENT, checkout=checkout)
        for form in FORMS:
            page = files / form
            write_page(files / f"{form}.onnx", page, form, runtime, [PageExample(x)])
            yield (str(checkout), form, "wasm"), page
            if webgpu is not None:
                copied = files / f"{form}-webgpu"
                shutil.copytree(page, copied)
                use_webgpu(copied, webgpu)
                yield (str(checkout), form, "webgpu"), copied


def use_webgpu(page: Path, package: Path) -> None:
    """Let a page run its model by WebGPU."""
    with tarfile.open(package) as content:
        for name in WEBGPU_FILES:
            file = content.extractfile(f"package/dist/{name}")
            assert file is not None
            (page / "ort" / name).write_bytes(file.read())
    script = (page / "model.js").read_text(encoding="utf-8")
    for before, after in (
        ("ort.wasm.bundle.min.mjs", WEBGPU_FILES[0]),
        ("ort-wasm-simd-threaded.wasm", WEBGPU_FILES[2]),
        ('["wasm"]', '["webgpu"]'),
    ):
        assert script.count(before) == 1, before
        script = script.replace(before, after)
    (page / "model.js").write_text(script, encoding="utf-8")


def measure(
    browser: Browser, pages: dict[Key, Path], rounds: int
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    """Milliseconds of each round, by page, and the errors of the pages that cannot predict.

    All pages that predict have to predict the same.
    """
    with ExitStack() as stack:
        tabs: dict[Key, Tab] = {}
        errors: dict[Key, str] = {}
        for key, page in pages.items():
            tab = stack.enter_context(opened(browser))
            tab.open(stack.enter_context(served(page)))
            # The page predicts once by itself, and WebGPU refuses a second session meanwhile.
            message = tab.page.locator("#message")
            expect(message).not_to_contain_text("Loading", timeout=PATIENCE * 1000)
            if tab.page.locator("#message.error").count():
                errors[key] = tab.text("#message")
                continue
            expect(message).to_contain_text(" ms ", timeout=PATIENCE * 1000)
            tab.page.evaluate(LOAD)
            tabs[key] = tab
        expected = None
        for key, tab in tabs.items():  # the first call, which compiles, is not timed
            y = np.fromstring(tab.page.evaluate(PREDICT), sep=",")
            expected = y if expected is None else expected
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5, err_msg=str(key))
        times: dict[Key, list[float]] = {key: [] for key in tabs}
        for _ in range(rounds):
            for key, tab in tabs.items():
                times[key].append(tab.page.evaluate(TIME))
    return times, errors


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("checkouts", type=Path, nargs="*", default=[ROOT], metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--web-runtime", type=Path, help="the package, instead of running npm")
    parser.add_argument("--webgpu", action="store_true", help="measure WebGPU, too")
    arguments = parser.parse_args()
    if arguments.webgpu and not arguments.web_runtime:
        parser.error("--webgpu takes the package given by --web-runtime")
    program = find_chromium()
    if program is None:
        raise SystemExit("Chromium is not installed")
    options = ARGUMENTS
    if arguments.webgpu:
        options = (*(option for option in ARGUMENTS if option != "--disable-gpu"), *WEBGPU_ARGUMENTS)
    runtime = load_runtime(arguments.web_runtime)
    with tempfile.TemporaryDirectory() as folder:
        webgpu = arguments.web_runtime if arguments.webgpu else None
        pages = dict(make_pages(arguments.checkouts, runtime, webgpu, Path(folder)))
        sizes = {key: (page / "model.onnx").stat().st_size / 1024 for key, page in pages.items()}
        with launched(program, options) as browser:
            times, errors = measure(browser, pages, arguments.rounds)
    rows = []
    for key, series in times.items():
        first = times.get((str(arguments.checkouts[0]), *key[1:]), series)
        ratio = median(time / base for time, base in zip(series, first, strict=True))
        rows.append([*key, f"{median(series):.1f}", f"{ratio:.2f}", f"{sizes[key]:.0f}"])
    print(markdown(COLUMNS, rows, 3))
    for key, error in errors.items():
        print(f"\n{', '.join(key)}: {printable(error)}")


if __name__ == "__main__":
    main()
