"""The networks, and the registry that users extend."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusal import refused
from helpers.user_data import write_image

from mdlstm_tk.data import UNLABELLED, Batch, DatasetTask, TaskSpec
from mdlstm_tk.data.task import collate
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.models import Normalized, create, model_names, model_options, register
from mdlstm_tk.models.blocks import fill_padding
from mdlstm_tk.models.registry import resolve
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import TrainConfig, configure, new_job, train
from mdlstm_tk.training.evaluation import predictions
from mdlstm_tk.training.losses import total_loss
from mdlstm_tk.training.networks import build_network, columns_per_step


def test_original_names_are_accepted_in_any_case() -> None:
    aliases = {"md": "md", "MD_LSTM": "md", "HORIZONTAL_SD_LSTM": "horizontal", "Snake_SD_LSTM": "snake"}
    assert {alias: resolve(alias) for alias in aliases} == aliases


@pytest.mark.parametrize(
    ("kind", "model"), [(kind, model) for kind in kind_names() for model in model_names(kind)]
)
def test_networks_take_batches_of_samples_alone(kind: str, model: str) -> None:
    """A sample would be taken for many samples of one axis less."""
    network = create(model, 1, 3, kind=kind, hidden=4).eval()
    refused(r"x has shape \(16, 12, 1\), .* alone is x\[None\]", lambda: network(torch.rand(16, 12, 1)))
    refused("x must be a torch.Tensor, got ndarray", lambda: network(np.zeros((1, 16, 12, 1))))
    if model in ("lines", "pages", "pixel"):
        refused(r"x has shape \(1, 1, 16, 12\), .* C = 1$", lambda: network(torch.rand(1, 1, 16, 12)))
    y, empty = network(torch.rand(2, 16, 12, 1)), torch.zeros(0, 16, 12, 1)
    for sizes in (None, torch.zeros(0, 2, dtype=torch.long)):
        assert network(empty, sizes).shape == (0, *y.shape[1:])


ROWS, COLUMNS = torch.arange(4)[:, None], torch.arange(6)[None]
READ_BEFORE = (ROWS < 2) | ((ROWS == 2) & (COLUMNS <= 3))  # up to (2, 3) in reading order
RECEPTIVE_FIELDS = {
    ("grid", "md"): (ROWS <= 2) & (COLUMNS <= 3),
    ("grid", "horizontal"): (ROWS == 2) & (COLUMNS <= 3),
    ("grid", "snake"): READ_BEFORE,
    ("grid", "raster"): READ_BEFORE,
    ("segment", "md"): torch.ones(4, 6, dtype=torch.bool),
}


def receptive_field(network: torch.nn.Module, row: int, column: int) -> torch.Tensor:
    """Return the positions (4, 6) that the prediction at one position depends on."""
    x = torch.randn(1, 4, 6, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, row, column, 0], x)
    return gradient[0, ..., 0] != 0


@pytest.mark.parametrize(("kind", "model"), RECEPTIVE_FIELDS)
def test_each_network_has_its_receptive_field(kind: str, model: str) -> None:
    torch.manual_seed(0)
    for layers in (1, 3):
        network = create(model, 1, 3, kind=kind, hidden=4, layers=layers)
        assert (receptive_field(network, 2, 3) == RECEPTIVE_FIELDS[kind, model]).all()


@pytest.mark.parametrize("model", ["md", "horizontal", "snake"])
def test_untrained_networks_predict_the_mean(model: str) -> None:
    net = create(model, 1, 1)
    net.set_initial_prediction((0.08,))
    y = net(torch.rand(4, 8, 8, 1) * 0.1)
    assert y.mean().item() == pytest.approx(0.08, abs=0.05)
    for mean in ((1.0,), (1.5,), (0.1, 0.2), ()):
        refused(
            r"mean must be 1 number in \(0, 1\), got", lambda mean=mean: net.set_initial_prediction(mean)
        )
    linear = create(model, 1, 1, linear=True)
    linear.set_initial_prediction((20.0,))
    assert linear(torch.rand(4, 8, 8, 1) * 0.1).mean().item() == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("gru", {}, "'gru'.*md, horizontal, snake"),
        ("horisontal", {}, "'horisontal'.*did you mean 'horizontal'"),
        ("MDLSTM", {}, "'MDLSTM'.*did you mean 'md_lstm'"),
        ("snake", {"cell": "leaky"}, "'snake'.*'cell'.*hidden, layers, linear"),
        ("pixel", {}, "'pixel'.*density.*grid"),
    ],
)
def test_unknown_networks_and_options_are_errors(name: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        create(name, 1, 1, **options)


MODELS = [(kind, model) for kind in kind_names() for model in model_names(kind)]
SIZES = torch.tensor([[9, 14], [5, 7], [1, 1], [1, 7], [9, 1]])
WINDOWED = [(kind, model) for kind, model in MODELS if "windows" in model_options(model, kind)]
BAD: dict[str, list[Any]] = {
    **{name: [0, -1, "a", 2.5, None, True] for name in ("channels", "outputs", "hidden", "layers")},
    "ndim": [0, "a"],
    "dropout": ["0.5", 1.5, None, float("nan"), True],
    "linear": ["False", None],
    "windows": [2, {(2, 2), (3, 1)}, "ab", [0]],
    "directions": [{(1, 1)}, "x"],
    "device": ["foo"],
    "dtype": [torch.int32, "float32"],
}


@pytest.mark.parametrize(("kind", "model"), MODELS)
def test_every_option_of_a_network_is_checked(kind: str, model: str) -> None:
    for name in ("channels", "outputs", *model_options(model, kind)):
        for value in BAD.get(name, ()):
            options: Any = {"channels": 2, "outputs": 3, name: value}
            with pytest.raises(InputError, match=name) as caught:
                create(model, kind=kind, **options)
            assert "\n" not in str(caught.value)


PADDED = [(*names, ()) for names in MODELS] + [(*names, ((2, 3), (2, 1))) for names in WINDOWED]


@pytest.mark.parametrize(("kind", "model", "windows"), PADDED)
def test_padding_does_not_change_the_result(kind: str, model: str, windows: Any) -> None:
    torch.manual_seed(0)
    options = {"windows": windows} if windows else {}
    net = create(model, 2, 5, kind=kind, hidden=6, **options).eval()
    x = torch.randn(5, 9, 14, 2)
    y = net(fill_padding(x, SIZES, torch.nan), SIZES)
    loss = y.new_zeros(())
    for k, (height, width) in enumerate(SIZES.tolist()):
        alone = net(x[k : k + 1, :height, :width])[0]
        inner = y[k][tuple(map(slice, alone.shape))]
        torch.testing.assert_close(inner, alone, atol=1e-5, rtol=1e-4)
        loss = loss + inner.square().sum()
        if kind == "transcribe":
            assert (y[k, len(alone) :].argmax(-1) == 0).all()
            assert (y[k, len(alone) :].log_softmax(-1)[..., 0].abs() < 1e-6).all()
    gradients = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


EXTENTS = ((9, 30), (4, 10), (9, 17), (1, 1))


def padded_batch(kind: Any, extra: tuple[int, int]) -> Batch:
    """Samples of EXTENTS with some more padding; the text of the last one has no room."""
    rng = np.random.default_rng(0)
    samples: list[Any] = []
    for extents in EXTENTS:
        numbers, mask = rng.random((*extents, 4)), rng.integers(UNLABELLED, 4, extents)
        lines = [np.float32([[0, 2], [20, 3]]), np.float32([[3, 1], [9, 9], [5, 5]])]
        targets = {"grid": numbers, "segment": mask, "classify": 2, "transcribe": [1, 2]}
        y = (targets | {"baselines": lines}).get(kind, [0, 1, 1, 0])
        samples.append((rng.random((*extents, 1)), y))
    largest = tuple(np.max(EXTENTS, axis=0) + extra)
    frame = {"grid": np.zeros((*largest, 4)), "segment": np.full(largest, UNLABELLED)}.get(
        kind, samples[0][1]
    )
    batch = collate(kind, [*samples, (np.zeros((*largest, 1)), frame)])  # the frame widens all others
    return Batch(batch.x[:-1], batch.y[:-1], np.array(EXTENTS))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("kind", "model"), MODELS)
def test_more_padding_changes_nothing(kind: Any, model: str, training: bool) -> None:
    """Outputs, loss, gradients and running statistics are those of the batch with less padding."""
    torch.manual_seed(0)
    outputs, step = (3, 2) if kind == "baselines" else (4, 1)  # maps, and positions of x under one of them
    network = create(model, 1, outputs, kind=kind, hidden=4).train(training)
    classes = tuple("abcd")[: kind_named(kind).name_count(4)]
    scale = {"target_mean": (0.5,) * 4, "target_std": (2.0,) * 4} if kind == "regress" else {}
    spec, results = TaskSpec("t", kind, 1, outputs, EXTENTS[0], classes, **scale), []
    for extra in ((0, 0), (5, 0), (0, 29), (23, 40)):
        twin, batch = deepcopy(network), padded_batch(kind, extra)
        predicted, columns = predictions(twin, batch, torch.device("cpu")), columns_per_step(twin)
        loss = total_loss(predicted, batch, spec, columns)
        loss.backward()
        gradients = [parameter.grad for parameter in twin.parameters() if parameter.grad is not None]
        valid = [
            y
            if y.dim() == 1
            else y[: -(-extents[1] // columns)]
            if columns
            else y[tuple(slice(-(-extent // step)) for extent in extents)]
            for output in predicted
            for y, extents in zip(output, EXTENTS, strict=True)
        ]
        results.append([loss, *valid, *gradients, *twin.buffers()])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "model"), MODELS)
def test_sizes_may_be_lists_arrays_or_smaller_integers(kind: str, model: str) -> None:
    torch.manual_seed(0)
    net = create(model, 1, 3, kind=kind, hidden=4).eval()
    x, extents = torch.randn(2, 4, 5, 1), [[4, 5], [2, 3]]
    expected = net(x, torch.tensor(extents))
    for sizes in (extents, np.array(extents), torch.tensor(extents, dtype=torch.int32)):
        assert torch.equal(net(x, sizes), expected)
    for wrong in ([[4, 5]], [[4, 5], [2, 6]], torch.ones(2, 2)):
        with pytest.raises(InputError, match="sizes must"):
            net(x, wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "model"), MODELS)
def test_networks_are_created_in_a_dtype_and_on_a_device(kind: str, model: str, dtype: torch.dtype) -> None:
    options = {"windows": ((2, 1), (1, 2))} if (kind, model) in WINDOWED else {}
    create_net = partial(create, model, 1, 3, kind=kind, hidden=4, dtype=dtype, **options)
    net = Normalized(create_net(), (0.5,), (2.0,), dtype=dtype).eval()
    tensors = [*net.parameters(), *net.buffers()]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}
    assert net(torch.zeros(2, 4, 5, 1, dtype=dtype)).dtype == dtype
    empty = create_net(device="meta")
    assert all(parameter.is_meta for parameter in empty.parameters())
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(net.network.state_dict())
    x = torch.ones(2, 4, 5, 1, dtype=dtype)
    assert torch.equal(filled(x), net.network(x))


def test_a_segmenter_with_windows_labels_each_position_of_a_window() -> None:
    net = create("md", 1, 2, kind="segment", hidden=4, windows=((2, 3),))
    net.head.weight.data.zero_()
    net.head.bias.data = torch.arange(12.0)  # (2, 3) positions of a window × 2 classes
    y = net(torch.zeros(1, 3, 7, 1))[0, ..., 0]
    window = torch.arange(0, 12.0, 2).view(2, 3)
    assert torch.equal(y, window.repeat(2, 3)[:3, :7])


def test_a_window_may_be_one_extent() -> None:
    assert create("md", 1, 2, kind="segment", hidden=4, windows=(2, (1, 3))).stride == (2, 6)
    with pytest.raises(InputError, match=r"each of windows must be .* 2 extents, .*got \(2, 2, 2\)"):
        create("md", 1, 2, kind="segment", windows=[(2, 2, 2)])


def test_hidden_units_are_those_of_the_last_level() -> None:
    for hidden, of_first in ((1, 1), (3, 2), (8, 4)):
        encoder = create("md", 1, 2, kind="transcribe", hidden=hidden).encoder
        assert [level.hidden_size for level in encoder.levels] == [of_first, hidden]
    with pytest.raises(InputError, match="hidden must be an integer of at least 1, got 0"):
        create("md", 1, 2, kind="classify", hidden=0)


def test_a_classifier_averages_more_positions_than_float16_can_count() -> None:
    network = create("md", 1, 3, kind="classify", hidden=1, directions=1, dtype=torch.float16)
    features = torch.ones(1, 300, 300, 1, dtype=torch.float16)
    network.encoder.forward = lambda x, sizes: (features, sizes)
    sizes = torch.tensor([[300, 300]])
    torch.testing.assert_close(network(features, sizes), network(features))


@pytest.mark.parametrize("name", ["snake", "horizontal"])
def test_networks_of_torch_answer_wrong_x_as_others_do(name: str) -> None:
    net = create(name, 1, 1)
    refused(r"x has shape \(1, 4, 4, 3\)", lambda: net(torch.zeros(1, 4, 4, 3)))
    refused("x holds torch.int64", lambda: net(torch.zeros(1, 4, 4, 1, dtype=torch.int64)))


def test_an_initial_prediction_is_finite() -> None:
    net = create("md", 1, 1, linear=True)
    refused("mean must be 1 number", lambda: net.set_initial_prediction([float("nan")]))


def test_normalized_networks_take_and_return_raw_numbers() -> None:
    inner = create("md", 2, 1, linear=True)
    with pytest.raises(InputError, match=r"target_std must be numbers above 0 in .*, got \[0.0\]"):
        Normalized(inner, (1.0, 2.0), (0.5, 4.0), (10.0,), (0.0,))
    for numbers in (
        ((1.0,), (0.5, 4.0)),
        ((1.0, 2.0), (0.5, 4.0), (), (2.0,)),
        ((1.0, 2.0), (0.5, 4.0), (10.0,)),
    ):
        refused("must be equally many numbers", lambda numbers=numbers: Normalized(inner, *numbers))
    for numbers, message in (
        (((), ()), "a number for each channel, got none"),
        (((float("nan"), 0.0), (1.0, 1.0)), "mean must be finite numbers in torch.float32"),
        (((0.0, 0.0), (1e-50, 1.0)), "std must be numbers above 0 in torch.float32"),
    ):
        refused(message, lambda numbers=numbers: Normalized(inner, *numbers))
    three = Normalized(inner, (1.0,) * 3, (0.5,) * 3)
    refused("x has 2 channels, but mean and std are of 3", lambda: three(torch.zeros(1, 3, 4, 2)))
    targets = Normalized(inner, (1.0, 2.0), (0.5, 4.0), (1.0, 2.0), (3.0, 3.0))
    refused(
        "the prediction has 1 channel, but mean and std are of 2", lambda: targets(torch.zeros(1, 3, 4, 2))
    )
    net = Normalized(inner, (1.0, 2.0), (0.5, 4.0), (10.0,), (3.0,))
    x = torch.randn(2, 3, 4, 2)
    standardised = (x - torch.tensor([1.0, 2.0])) / torch.tensor([0.5, 4.0])
    torch.testing.assert_close(net(x), inner(standardised) * 3 + 10)
    again = Normalized(inner, np.array([1.0, 2.0]), np.array([0.5, 4.0]), np.array([10.0]), np.array([3.0]))
    assert torch.equal(again(x), net(x))
    sizes = torch.tensor([[3, 4], [2, 2]])
    torch.testing.assert_close(net(x, sizes)[1, :2, :2], net(x[1:, :2, :2])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["classify", "segment", "transcribe"])
def test_networks_export_for_any_size_with_padding_and_raw_input(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create("md", 1, 5, kind=kind, hidden=4, cell="leaky", windows=((2, 2),))
    net = Normalized(net, (0.3,), (0.2,)).eval()
    texts = {"kind": kind, "classes": tuple("abcd")} if kind == "transcribe" else {}
    options: Any = {"form": "scan", "padded": True, "channels": 1, "metadata": texts}
    report = export_onnx(net, tmp_path / "m.onnx", **options)
    session = Session(report.path, "cpu")
    x, sizes = torch.rand(2, 6, 11, 1), torch.tensor([[6, 11], [3, 4]])
    with torch.no_grad():
        expected = net(x, sizes).numpy()
    np.testing.assert_allclose(session(x.numpy(), sizes=sizes.numpy()), expected, atol=1e-5)


@pytest.mark.usefixtures("fresh_registries")
def test_options_are_those_that_a_factory_names() -> None:
    @register("open", kind="grid")
    def build(
        channels: int, outputs: int, *layers: int, hidden: int = 4, **options: Any
    ) -> torch.nn.Module:
        return torch.nn.Linear(channels, outputs)

    assert model_options("open", "grid") == ["hidden"]
    refused("'open' has no option 'depth'; its options are hidden", lambda: create("open", 1, 1, depth=2))
    register("bare", kind="grid")(lambda channels, outputs, **options: torch.nn.Linear(channels, outputs))
    refused("'bare' has no option 'hidden'; its factory names none", lambda: create("bare", 1, 1, hidden=2))


@pytest.mark.usefixtures("fresh_registries")
def test_networks_are_built_as_their_settings_say_whatever_their_own_defaults_are() -> None:
    options: dict[str, Any] = {}

    @register("probe", kind="grid")
    def build(
        channels: int,
        outputs: int,
        *,
        hidden: int = 7,
        layers: int = 3,
        dropout: float = 0.5,
        layer_norm: bool = True,
        cell: str = "leaky",
        directions: str | int = 2,
        windows: Any = ((3, 3),),
    ) -> torch.nn.Module:
        options.update(layers=layers, dropout=dropout, layer_norm=layer_norm)
        options.update(hidden=hidden, cell=cell, directions=directions, windows=windows)
        return torch.nn.Linear(channels, outputs)

    spec = TaskSpec("probe", "grid", channels=1, outputs=1, size=(4, 4))
    config = TrainConfig(model="probe")
    build_network(config, spec)
    empty = {"cell": "leaky", "directions": 2, "windows": ((3, 3),)}  # the settings are: its own defaults
    assert options == {"hidden": 16, "layers": 1, "dropout": 0.0, "layer_norm": False} | empty
    set_ones: dict[str, Any] = {"cell": "stable", "directions": "all", "windows": "2", "layers": 2}
    build_network(replace(config, **set_ones), spec)
    assert options["windows"] == ((2, 2),)
    assert {key: options[key] for key in set_ones if key != "windows"}.items() <= set_ones.items()


@pytest.mark.usefixtures("fresh_registries")
def test_a_registered_network_replaces_others_of_its_name() -> None:
    register("Tiny", "Small", kind="grid")(torch.nn.Linear)
    register("Tiny", "Small", kind="grid")(lambda channels, outputs: torch.nn.Flatten())
    assert isinstance(create("SMALL", 1, 1), torch.nn.Flatten)
    assert "tiny" in model_names("grid") and "tiny" not in model_names("segment")
    register("raster")(torch.nn.Linear)  # without a kind: those of all kinds
    assert isinstance(create("raster", 3, 2, kind="grid"), torch.nn.Linear)
    assert "raster" in model_names("density")
    register("small")(torch.nn.Linear)  # which was an alias
    assert isinstance(create("small", 1, 1), torch.nn.Linear)
    assert isinstance(create("tiny", 1, 1), torch.nn.Flatten)
    refused("takes other aliases than 'MD', which is a network", lambda: register("mine", "MD"))


@pytest.mark.parametrize(("crop", "batch_size"), [("", 2), ("8x8", 2), ("4x4", 2), ("", 1)])
@pytest.mark.usefixtures("fresh_registries")
def test_networks_without_sizes_are_refused_for_batches_of_mixed_sizes(
    crop: str, batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(8):
        write_image(tmp_path / f"data/{'ab'[k % 2]}/{k}.png", np.full((5 + k % 3, 6), k))

    @register("fixed", kind="classify")
    class Fixed(torch.nn.Linear):
        def __init__(self, channels: int, outputs: int, *, hidden: int = 1) -> None:
            super().__init__(channels, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).mean((1, 2))

    settings = {"task": "classify", "data": str(tmp_path / "data"), "resize": "", "crop": crop}
    config = configure({**settings, "model": "fixed", "steps": 3, "augment": 0, "batch_size": batch_size})
    job = new_job(config, tmp_path / "run")
    monkeypatch.setattr(DatasetTask, "evaluation_batch", batch_size)
    if crop == "4x4" or batch_size == 1:  # then those of a batch are equal
        assert train(job)["step"] == 3
    else:
        refused("the network takes no sizes", lambda: train(job))


def test_auxiliary_predictions_are_scaled_as_the_prediction_is() -> None:
    class WithAuxiliary(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, -x

    network = Normalized(WithAuxiliary(), (1.0,), (2.0,), (10.0,), (4.0,))
    y, auxiliary = network(torch.tensor([[[[3.0]]]]))
    assert (y.item(), auxiliary.item()) == (14.0, 6.0)
