"""A kind of task of one's own, `counting`: how many objects are in an image; by Poisson's likelihood.

python examples/own_kind.py
mdlstm --import examples/own_kind.py train --task counting --data dots.npz
"""

import numpy as np
from torch import as_tensor, nn

from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import COMMON_DEFAULTS, Kind, TargetRule, TrainingKind, register_kind
from mdlstm_tk.runtime import Session, decode
from mdlstm_tk.training import default_config, new_job, train


class CountingTraining(TrainingKind):  # the questions of training
    array_format = "an .npz file with x and whole numbers y (N,)"
    target_dtypes, error_names = "ui", ("mae",)
    defaults = COMMON_DEFAULTS | {"steps": 300, "hidden": 8, "lr": 0.01}

    def read_array(self, y, index, extents, names):
        return int(y[index])

    def collate(self, x, targets, pad):
        return np.array(targets, np.int64)  # the y of a batch

    def rule(self, batch, spec):
        return TargetRule(np.int64, (len(batch.x),), prediction=(len(batch.x), 1), low=0)

    def loss(self, prediction, batch, spec, columns):
        y = as_tensor(batch.y, device=prediction.device)
        return nn.functional.poisson_nll_loss(prediction[:, 0], y)

    def measures(self, prediction, batch, spec):
        y = as_tensor(batch.y, device=prediction.device)
        return {"mae": ((prediction[:, 0].exp() - y).abs().sum(), len(y))}


class Counting(Kind):  # the questions of exports and inference
    name, networks_of, training = "counting", "classify", CountingTraining()
    gives_rows, sample_axes = True, 1

    def decode(self, y, metadata, *, digits=3):  # y is (N, 1); an argument is an option of `infer_paths`
        numbers = np.exp(y[:, 0]).tolist()  # the network returns logarithms
        return [{"count": round(number), "expected": round(number, digits)} for number in numbers]


register_kind(Counting())


def draw_dots(count, rng):
    """Images (N, 12, 12, 1) of one to five dots, and the numbers of dots."""
    y = rng.integers(1, 6, count)
    x = rng.random((count, 144)).argsort(axis=1) < y[:, None]
    return {"x": x.reshape(count, 12, 12, 1).astype(np.float32), "y": y}


def main(folder="."):
    """Train, export and infer, and return the mean error of new images."""
    data, run, rng = f"{folder}/dots.npz", f"{folder}/counting", np.random.default_rng(0)
    np.savez(data, **draw_dots(500, rng))
    train(new_job(default_config("counting", data), run))
    session, new = Session(export_run(run, form="scan").path), draw_dots(100, rng)
    rows = decode(session(new["x"]), session.metadata)
    return np.abs([row["expected"] for row in rows] - new["y"]).mean()


if __name__ == "__main__":
    print(f"mean error of the counts in 100 new images: {main():.2f}")
