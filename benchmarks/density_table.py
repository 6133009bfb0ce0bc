"""Compare density models of equal size, each with the settings that fit validation data best.

    python benchmarks/density_table.py tune digits-binary    # chooses settings; a quarter of an hour
    python benchmarks/density_table.py table digits-binary   # trains with them; a quarter of an hour

`tune` trains each network with seed 0 and a part of the steps, and changes one setting after the other, up
or down as long as the best loss on validation data improves. Test data are not looked at. The choice is
written to density_settings.json, which `table` reads. Runs that are finished are not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import rival_networks  # noqa: F401, registers conv, row and snake
import torch
from measuring import argument_parser, markdown
from mixtures import fit_baselines

from mdlstm_tk.data import Ising, Task
from mdlstm_tk.training import TrainConfig, default_config, load_checkpoint, new_job, train
from mdlstm_tk.training.comparison import with_parameters
from mdlstm_tk.training.networks import build_network, count_parameters
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.tasks import make_task

MODELS = ("pixel", "conv", "row", "snake")
SETTINGS = Path(__file__).parent / "density_settings.json"
COLUMNS = ("density", "parameters", "settings", "nats", "lowest–highest", "bits per dimension", "s a run")


class Plan(NamedTuple):
    """The training of a task.

    Attributes:
        changes: settings that differ from the task's defaults, for all networks. The search begins here.
        tuning_steps: steps of each run that chooses settings.
        search: settings in the order in which they are chosen.
        start: another task, with whose chosen settings the search begins.
    """

    changes: dict[str, Any]
    tuning_steps: int
    search: tuple[str, ...]
    start: str = ""


VALUES: dict[str, tuple[Any, ...]] = {
    "lr": (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04),
    "dropout": (0.0, 0.15, 0.3, 0.45, 0.6),
    "layers": (1, 2, 3, 4),
}
DIGITS = {"steps": 2000, "lr": 0.01, "dropout": 0.3}
PLANS = {
    "digits-binary": Plan(DIGITS, 1000, ("lr", "dropout", "layers")),
    "digits-grey": Plan(DIGITS, 1000, ("lr",), start="digits-binary"),
    "ising": Plan({"size": "16", "steps": 2000, "lr": 0.01}, 700, ("lr", "layers")),
    "fashion": Plan({"steps": 1200, "lr": 0.01, "hidden": 32, "layers": 2}, 300, ("lr", "layers")),
}


def base_config(task: str) -> TrainConfig:
    """The settings that all networks share. Their `pixel` has the number of parameters of all networks."""
    return replace(default_config(task), **PLANS[task].changes)


def config_for(task: Task, model: str, settings: dict[str, Any], seed: int = 0) -> TrainConfig:
    """A network with as many parameters as the base configuration."""
    base = base_config(task.name)
    target = count_parameters(build_network(base, task.spec))
    return with_parameters(replace(base, model=model, seed=seed, **settings), task.spec, target)


def tune(name: str, models: Sequence[str], steps: int, runs: Path) -> None:
    """Choose the settings of networks, beginning with those that are in SETTINGS, and write them there."""
    plan, base = PLANS[name], base_config(name)
    task, before = make_task(base), json.loads(SETTINGS.read_text())
    start = before.get(name, before.get(plan.start, {}))
    chosen: dict[str, dict[str, Any]] = {}
    for model in models:

        def score(settings: dict[str, Any], model: str = model) -> float:
            run = Run(runs / f"{name}-tuning" / "-".join(map(str, (model, *settings.values(), steps))))
            return validation_score(run, replace(config_for(task, model, settings), steps=steps), task)

        settings = {key: getattr(base, key) for key in plan.search} | start.get(model, {})
        for key in plan.search:
            for direction in (1, -1):
                while (value := value_beside(key, settings[key], direction)) is not None:
                    other = {**settings, key: value}
                    if score(other) >= score(settings):
                        break
                    settings = other
        chosen[model] = settings
    tables = json.loads(SETTINGS.read_text())  # another task may have been tuned in the meantime
    tables.setdefault(name, {}).update(chosen)
    SETTINGS.write_text(json.dumps(tables, indent=2) + "\n")


def value_beside(key: str, value: Any, direction: int) -> Any:
    """The next value of a setting to try, or None."""
    index = VALUES[key].index(value) + direction
    return VALUES[key][index] if 0 <= index < len(VALUES[key]) else None


def validation_score(run: Run, config: TrainConfig, task: Task) -> float:
    """The loss on validation data of the best weights of a run, which is trained if it does not exist."""
    done = run.folder / "score.json"
    if not done.is_file():
        train(new_job(config, run.folder, True, task))
        done.write_text(json.dumps(load_checkpoint(run.best).state.score))
        print(f"{run.folder.name}: {done.read_text()}", flush=True)
    score: float = json.loads(done.read_text())
    return score


def run_folder(runs: Path, task: str, model: str, seed: int) -> Run:
    """Where the run of a network and a seed is."""
    return Run(runs / task / f"{model}-{seed}")


def train_all(name: str, seeds: int, runs: Path) -> None:
    """Train all networks, and measure those and the baselines on test data."""
    settings = json.loads(SETTINGS.read_text())[name]
    for seed in range(seeds):
        task = make_task(replace(base_config(name), seed=seed))
        for model in MODELS:
            run = run_folder(runs, name, model, seed)
            if not run.result.is_file():
                config = config_for(task, model, settings[model], seed)
                result = train(new_job(config, run.folder, True, task))
                print(name, model, seed, result["errors"], flush=True)
        baselines = runs / name / f"baselines-{seed}.json"
        if not baselines.is_file():
            base = base_config(name)
            samples = base.steps * base.batch_size
            errors = fit_baselines(task, seed, samples) | task.baselines(seed, samples)
            baselines.write_text(json.dumps(errors))


def print_table(name: str, seeds: int, runs: Path) -> None:
    """Print the errors of all networks and baselines, the best one first, as a table in Markdown."""
    settings = json.loads(SETTINGS.read_text())[name]
    results = {
        model: [json.loads(run_folder(runs, name, model, k).result.read_text()) for k in range(seeds)]
        for model in MODELS
    }
    errors = {model: [result["errors"] for result in results[model]] for model in MODELS}
    baselines = [json.loads((runs / name / f"baselines-{k}.json").read_text()) for k in range(seeds)]
    errors |= {each: [of_seed[each] for of_seed in baselines] for each in baselines[0]}
    task = make_task(base_config(name))
    if isinstance(task, Ising):
        print(f"entropy: {task.entropy:.3f} nats")
    rows = []
    for each in sorted(errors, key=lambda each: mean(e["nats"] for e in errors[each])):
        nats, bits = ([e[error] for e in errors[each]] for error in ("nats", "bits_per_dim"))
        parameters = chosen = seconds = ""
        if each in results:
            parameters = f"{results[each][0]['parameters']:,}"
            chosen = ", ".join(f"{key} {value}" for key, value in settings[each].items())
            seconds = f"{mean(result['seconds'] for result in results[each]):.0f}"
        figures = f"{mean(nats):.2f}", f"{min(nats):.2f}–{max(nats):.2f}", f"{mean(bits):.3f}"
        rows.append([each, parameters, chosen, *figures, seconds])
    print(markdown(COLUMNS, rows))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("what", choices=("tune", "table"))
    parser.add_argument("task", choices=tuple(PLANS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="to tune")
    parser.add_argument("--steps", type=int, help="of each run of tune")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/density"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "tune":
        steps = arguments.steps or PLANS[arguments.task].tuning_steps
        tune(arguments.task, arguments.models, steps, arguments.runs)
    else:
        train_all(arguments.task, arguments.seeds, arguments.runs)
        print_table(arguments.task, arguments.seeds, arguments.runs)


if __name__ == "__main__":
    main()
