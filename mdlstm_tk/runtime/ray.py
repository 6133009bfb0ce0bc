"""Distribute many files over Ray workers, on the cluster at $RAY_ADDRESS or on this machine.

All machines must see the files under the same paths. The results are those of one process, byte for byte.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdlstm_tk._util.user_code import import_file, imported_files
from mdlstm_tk.errors import MDLSTMError, require
from mdlstm_tk.runtime.infer import CHUNK, Inference, Job, Result


class Worker:
    """A Ray actor that loads the model once and then runs chunks of jobs."""

    def __init__(self, folder: str, files: list[Path], run: Inference) -> None:
        os.chdir(folder)
        for path in files:
            import_file(path)
        self._run = run  # its session was pickled, and has loaded the model here

    def work(self, jobs: list[Job]) -> tuple[list[Result], list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            results = list(self._run.run(jobs))
        return results, [str(each.message) for each in caught]


def infer_with_ray(run: Inference, workers: int) -> Iterator[Result]:
    """The results of an inference in the order of its jobs."""
    ray: Any = require("ray", "ray")
    address = os.environ.get("RAY_ADDRESS")
    chunks = [run.jobs[i : i + CHUNK] for i in range(0, len(run.jobs), CHUNK)]
    on_gpu = run.session.device != "cpu"
    try:
        resources = {} if address else {"num_cpus": workers}
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, **resources)
        if on_gpu:  # an actor without a GPU would wait for ever
            workers = min(workers, int(ray.cluster_resources().get("GPU", 0))) or 1
        actor = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_restarts=2, max_task_retries=2)(Worker)
        job = replace(run, workers=None, report=None)
        actors = [actor.remote(os.getcwd(), imported_files(), job) for _ in range(workers)]
        pool = require("ray.util", "ray").ActorPool(actors)
        for results, warned in pool.map(lambda each, chunk: each.work.remote(chunk), chunks):
            for text in warned:
                warnings.warn(text, stacklevel=2)
            yield from results
    except ray.exceptions.RayError as error:
        raise MDLSTMError(f"Ray failed: {str(error).splitlines()[-1]:.200}") from None
    finally:
        ray.shutdown()
