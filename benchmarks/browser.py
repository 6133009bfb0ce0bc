"""The time of a prediction in the browser page, for a file of each form in turn.

    python benchmarks/browser.py                                            # npm fetches onnxruntime-web
    python benchmarks/browser.py --web-runtime onnxruntime-web-1.30.0.tgz

The file is a layer of 32 units in all directions, for one channel. Headless Chromium opens each page in a
tab. The tabs then take turns: each calls the function of its page that predicts, for one grid of 64×64.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import torch
from playwright.sync_api import Browser, expect

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.browser import find_chromium, launched, opened, served
from measuring import argument_parser, markdown

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.export.browser.build import load_runtime, write_page
from mdlstm_tk.export.browser.examples import PageExample
from mdlstm_tk.export.lowering.lower import FORMS

EXTENT = 64
PATIENCE = 120.0  # seconds until a page that has not predicted counts as broken
LOAD = "import('./model.js').then((page) => page.loadModel()).then((model) => { window.model = model; })"
PREDICT = "model.predict(model.examples[0].x).then((result) => result.y.data.join())"
TIME = "model.predict(model.examples[0].x).then((result) => result.milliseconds)"


def measure(browser: Browser, pages: Mapping[str, Path], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, by page. All pages have to predict the same."""
    with ExitStack() as stack:
        tabs, expected = {}, None
        for name, page in pages.items():
            tab = stack.enter_context(opened(browser))
            tab.open(stack.enter_context(served(page)))
            expect(tab.page.locator("#message")).to_contain_text(" ms ", timeout=PATIENCE * 1000)
            tab.page.evaluate(LOAD)
            # The first call, which compiles, is not timed.
            y = np.fromstring(tab.page.evaluate(PREDICT), sep=",")
            expected = y if expected is None else expected
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5, err_msg=name)
            tabs[name] = tab
        times: dict[str, list[float]] = {name: [] for name in tabs}
        for _ in range(rounds):
            for name, tab in tabs.items():
                times[name].append(tab.page.evaluate(TIME))
    return times


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--web-runtime", type=Path, help="the package, instead of running npm")
    arguments = parser.parse_args()
    program = find_chromium()
    if program is None:
        raise SystemExit("Chromium is not installed")
    runtime, x = load_runtime(arguments.web_runtime), torch.rand(EXTENT, EXTENT, 1)
    with tempfile.TemporaryDirectory() as name:
        pages = {form: Path(name, form) for form in FORMS}
        for form, page in pages.items():
            torch.manual_seed(0)
            grid = (EXTENT, EXTENT) if form == "unrolled" else None
            layer = MDLSTM(1, 32, directions="all")
            model = export_onnx(layer, Path(name, f"{form}.onnx"), grid=grid, form=form).path
            write_page(model, page, form, runtime, [PageExample(x.numpy())])
        with launched(program) as browser:
            times = measure(browser, pages, arguments.rounds)
    print(markdown(("form", "ms"), [[form, f"{median(times[form]):.1f}"] for form in FORMS], 1))


if __name__ == "__main__":
    main()
