"""A kind of task of one's own, `counting`: how many objects are in an image; by Poisson's likelihood.

python examples/own_kind.py
mdlstm train --import examples/own_kind.py --task counting --data dots.npz
"""

from dataclasses import dataclass

import numpy as np
from torch import as_tensor, nn

from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import COMMON_DEFAULTS, LINES, Answer, Kind, TargetRule, TrainingKind, register_kind
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


@dataclass(frozen=True)
class Count(Answer):
    expected: float = 0.0

    def values(self):
        return {"count": int(self.text), "expected": self.expected}


class Counting(Kind):  # the questions of exports and inference
    name, networks_of, training = "counting", "classify", CountingTraining()
    answers, formats, is_printed, sample_axes = "counts", LINES, True, 1

    def decode(self, y, metadata, array, options, width):
        samples = self.each_sample(np.exp(y), metadata)  # the network returns logarithms
        return [Count(str(round(number.item())), array, k, number.item()) for k, number in samples]


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
    return np.abs([a.expected for a in decode(session(new["x"]), session.metadata)] - new["y"]).mean()


if __name__ == "__main__":
    print(f"mean error of the counts in 100 new images: {main():.2f}")
