"""A kind of task of one's own, `counting`: how many objects are in an image; by Poisson's likelihood.

python examples/own_kind.py
mdlstm --import examples/own_kind.py train --task counting --data dots.npz
"""

import numpy as np
from torch import nn

from mdlstm_tk.data.files import of_arrays
from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import COMMON, Kind, Labels, register_kind
from mdlstm_tk.runtime import Session, decode
from mdlstm_tk.training import configure, train


class Counting(Kind):
    name, networks, answers, axes = "counting", "classify", "rows", "N"
    defaults = COMMON | {"steps": 300, "hidden": 8, "lr": 0.01}

    def samples(self, path):  # an .npz file with x and whole numbers y (N,)
        return of_arrays(path, read_count, "ui")

    def fit(self, train, every, prepare, config):
        return Labels(outputs=1)

    def collate(self, x, targets):  # the y of a batch
        return np.array(targets)

    def loss(self, prediction, batch, spec):  # the network returns logarithms (N, 1)
        return nn.functional.poisson_nll_loss(prediction[:, 0], batch.y)

    def sums(self, prediction, batch, spec):
        errors = (prediction[:, 0].exp() - batch.y).abs()
        return {"error": errors.sum(), "count": errors.new_tensor(len(errors))}

    def measures(self, sums, spec):
        return {"mae": float(sums["error"] / sums["count"])}

    def decode(self, y, metadata, *, digits=2):  # an argument is an option of `infer_paths`
        return [{"count": round(number, digits)} for number in np.exp(y[:, 0]).tolist()]


def read_count(y, index, extents):  # a lambda could not be sent to workers
    return int(y[index])


register_kind(Counting())


def main(folder="."):
    """Train, export and infer, and return the mean error of 100 further images of one to five dots."""
    data, run, rng = f"{folder}/dots.npz", f"{folder}/counting", np.random.default_rng(0)
    y = rng.integers(1, 6, 600)
    x = np.float32(rng.random((600, 144)).argsort(axis=1) < y[:, None]).reshape(600, 12, 12, 1)
    np.savez(data, x=x[100:], y=y[100:])
    train(configure(task="counting", data=data), run)
    session = Session(export_run(run, form="scan").path)
    rows = decode(session(x[:100]), session.metadata)
    return np.abs([row["count"] for row in rows] - y[:100]).mean()


if __name__ == "__main__":
    print(f"mean error of the counts in 100 new images: {main():.2f}")
