"""A run folder or a configuration cannot name Python code that is run: only the user can, in each call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.crafted_runs import EVIL, assert_refused, copied, edit_checkpoint, edit_run, in_process, sets
from helpers.training import run_in

from mdlstm_tk import InputError
from mdlstm_tk.export import export_run, export_run_sizes, verify_model
from mdlstm_tk.report import draw_run, render_report
from mdlstm_tk.training import (
    Run,
    TrainConfig,
    configure,
    default_config,
    describe_run,
    evaluate_run,
    load_checkpoint,
    make_task,
    new_job,
    resume_job,
    run_job,
    train,
)

SETTINGS = ("model", "cell")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with an export."""
    config = TrainConfig(size="4", hidden=2, steps=2, evaluate_every=1, batch_size=2)
    run = run_in(tmp_path_factory.mktemp("good") / "run", config)
    export_run(run.folder)
    return run.folder


@pytest.fixture
def evil(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run beside a Python file that leaves a marker, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    return copied(good, tmp_path / "run")


VERBS: dict[str, tuple[object, ...]] = {
    "info": ("info", "run"),
    "report": ("report", "run"),
    "export": ("export", "run", "--force"),
    "export to a repository": ("export", "run", "--server-repo", "repository"),
    "export a checkpoint": ("export", "run/best.safetensors", "--force"),
    "verify the run": ("verify", "run"),
    "verify a model in it": ("verify", "run/model-4x4.onnx"),
    "verify against it": ("verify", "copy.onnx", "--against", "run"),
    "verify against a checkpoint": ("verify", "copy.onnx", "--against", "run/last.safetensors"),
    "resume": ("train", "--resume", "run", "--steps", 3),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_the_code_that_a_run_names(
    verb: str, setting: str, evil: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_run(evil, sets("config", setting, value="evil.py:net"))
    shutil.copy(evil / "model-4x4.onnx", "copy.onnx")
    result = in_process(capfd, *VERBS[verb])
    assert_refused(result, "evil.py:net", f"--{setting} file.py:net", "run/", ".safetensors")
    assert not Path("marker").exists()


@pytest.mark.parametrize("setting", SETTINGS)
def test_only_one_of_the_checkpoints_may_be_evil(
    setting: str, evil: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_checkpoint(evil / "best.safetensors", sets("config", setting, value="evil.py:net"))
    for verb in ("info", "report", "resume"):
        assert_refused(in_process(capfd, *VERBS[verb]), "best.safetensors", "evil.py:net")
    assert (evil / "last.safetensors").read_bytes()
    assert not Path("marker").exists()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("task", ["", 'task = "diagonal"\n'])
def test_a_configuration_file_names_no_code(
    task: str, setting: str, evil: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("config.toml").write_text(f'{task}{setting} = "evil.py:net"\n')
    assert_refused(
        in_process(capfd, "train", "-c", "config.toml"), "config.toml", f"--{setting} file.py:net"
    )
    assert not Path("marker").exists() and not Path("runs").exists()


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_library_call_runs_the_code_that_a_run_names(setting: str, evil: Path) -> None:
    edit_run(evil, sets("config", setting, value="evil.py:net"))
    (evil / "config.toml").write_text(f'{setting} = "evil.py:net"\n')
    run, config = Run(evil), TrainConfig(size="4", hidden=2, steps=4)
    calls = {
        "load_checkpoint": lambda: load_checkpoint(run.last),
        "describe_run": lambda: describe_run(evil),
        "render_report": lambda: render_report(run),
        "export_run": lambda: export_run(evil, "m.onnx"),
        "export_run_sizes": lambda: export_run_sizes(run, [(4, 4)], "m.onnx"),
        "verify_model": lambda: verify_model(evil),
        "resume_job": lambda: resume_job(evil, {"steps": 4}),
        "train": lambda: train(config, run, resume=True),
        "evaluate_run": lambda: evaluate_run(run, make_task(config)),
        "draw_run": lambda: draw_run(run),
        "TrainConfig.load": lambda: TrainConfig.load(run.config),
        "configure": lambda: configure({}, {}, run.config),
        "updated": lambda: TrainConfig().updated({setting: "evil.py:net"}, "a file"),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=rf"evil\.py:net.*--{setting}"):
            pytest.fail(f"{name} returned {call()}")
    assert not Path("marker").exists()


def test_the_file_that_the_user_names_is_run_and_no_other(
    evil: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = Path("mine.py")
    mine.write_text(EVIL.replace('"marker"', '"mine was run"'))
    edit_run(evil, sets("config", "model", value="evil.py:net"))
    file = ("--model", "mine.py:net")
    export = ("export", "run", "-o", "new.onnx")
    for verb in (VERBS["info"], VERBS["report"], export, VERBS["verify a model in it"]):
        result = in_process(capfd, *verb, *file)
        assert result.code == 0, result.err
    result = in_process(capfd, *VERBS["resume"], *file)
    assert result.code == 0, result.err
    assert result.err.endswith("next: mdlstm export run --size 4x4 --model mine.py:net\n")
    code = {"model": "mine.py:net"}
    assert load_checkpoint(evil / "last.safetensors", code).config.code == code
    assert Path("mine was run").exists() and not Path("marker").exists()
    assert_refused(in_process(capfd, *VERBS["info"], "--model", "mine.py:other"), "mine.py:other")
    assert_refused(in_process(capfd, *VERBS["info"], "--model", "md"), "--model", "file.py:name")


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_file_for_a_run_that_needs_none_is_refused(
    setting: str, evil: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for verb in ("info", "report", "export", "verify the run", "resume"):
        assert_refused(in_process(capfd, *VERBS[verb], f"--{setting}", "evil.py:net"), f"--{setting}")
    shutil.copy(evil / "model-4x4.onnx", "copy.onnx")
    alone = in_process(capfd, "verify", "copy.onnx", f"--{setting}", "evil.py:net")
    assert_refused(alone, f"--{setting}")
    assert not Path("marker").exists()


def test_options_of_the_user_replace_what_a_configuration_file_names(evil: Path) -> None:
    Path("config.toml").write_text('task = "diagonal"\nmodel = "evil.py:net"\ncell = "evil.py:net"\n')
    config = configure({"model": "md"}, {"cell": "stable"}, Path("config.toml"))
    assert (config.model, config.cell, config.code) == ("md", "stable", {})
    own = configure({"model": "evil.py:net"}, {"cell": "graves"}, Path("config.toml"))
    assert own.code == {"model": "evil.py:net"}
    assert Path("marker").exists(), "the user has named it"


def test_a_training_with_own_code_goes_to_its_end_in_one_call(evil: Path) -> None:
    config = default_config("diagonal", model="evil.py:net").updated(
        {"size": "4", "hidden": 2, "steps": 2, "batch_size": 2}, "here"
    )
    job = new_job(config, Path("new"))
    result = run_job(job)
    draw_run(job.run, job.task)
    assert result["model"] == "evil.py:net" and Path("new/prediction.png").exists()
    run = Run(Path("new"), config.code)
    render_report(run)
    assert export_run(run, "own.onnx").path.exists()
    run_job(resume_job(run.folder, {"steps": 3, "model": "evil.py:net"}))
    with pytest.raises(InputError, match="--model"):
        resume_job(run.folder, {"steps": 4})


def test_modules_are_not_imported_from_the_current_folder(evil: Path) -> None:
    from helpers.command import mdlstm_process

    for name in ("torch", "numpy", "rich", "yaml", "typer"):
        Path(f"{name}.py").write_text(EVIL)
    result = mdlstm_process("info", "run", cwd=Path.cwd())
    assert result.code == 0, result.err
    assert not Path("marker").exists()
