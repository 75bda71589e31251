from pathlib import Path

import numpy as np
import pytest
from _bench_results import (
    BOARD,
    SWEEP,
    TUTORIAL,
    inference,
    record,
    results,
    simple,
    timed,
    untimed,
)
from matplotlib.figure import Figure
from PIL import Image

from fused_loss.bench import plots
from fused_loss.bench.cases import LOSS_PHASES, MODEL_PHASES, Phase
from fused_loss.bench.plots import PLOTS, draw, memory, overhead, roofline, speedup
from fused_loss.bench.providers import PROVIDERS
from fused_loss.bench.suites import SUITES

ALL = (TUTORIAL, BOARD, *SWEEP)
TIMES = {"eager": 4e-4, "compile": 3e-4, "fused-auto": 2e-4, "copy": 1e-5}


def drawn(figure: Figure, panel: int) -> dict[str, list[float]]:
    """The values of each series by its color and marker, without helping lines."""
    axes = figure.axes[panel]
    return {
        f"{line.get_color()}{line.get_marker()}": list(np.asarray(line.get_xdata()))
        for line in axes.lines
        if line.get_marker() != "None" and len(line.get_xdata())
    }


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_plot_is_a_light_png(tmp_path: Path):
    made = simple(TIMES, ALL)
    made["records"] += inference({"eager": 4e-4, "onnx": 1e-4})["records"]
    paths = draw(made, tmp_path)
    assert [path.name for path in paths] == list(PLOTS)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert len(image.getcolors()) > 2
        assert path.stat().st_size < 120_000


@pytest.mark.slow
def test_the_largest_suite_is_light_too(tmp_path: Path):
    rng = np.random.default_rng(0)
    records = [
        record(
            case,
            phase,
            [
                timed(name, float(rng.uniform(1e-4, 1e-3)), rng.uniform(0.9, 1.1, 9), gpu=True)
                for name, provider in PROVIDERS.items()
                if phase in provider.phases and provider.fits(case)
            ],
        )
        for case in SUITES["gpu"]
        for phase in case.phases
    ]
    for path in draw(results(records, gpu=True), tmp_path):
        assert path.stat().st_size < 120_000


def test_a_plot_without_data_is_not_written_and_an_old_one_goes(tmp_path: Path):
    for name in PLOTS:
        (tmp_path / name).touch()
    paths = draw(simple({"eager": 1e-4}, (BOARD,)), tmp_path)
    assert [path.name for path in paths] == ["memory.png"]
    assert list(tmp_path.iterdir()) == paths
    assert draw(results([]), tmp_path) == list(tmp_path.iterdir()) == []


def test_the_speed_up_is_their_time_over_ours():
    rows = [timed("eager", 4e-4), timed("compile", 1e-4), timed("fused-auto", 2e-4)]
    figure = speedup(results([record(TUTORIAL, Phase.FORWARD, rows)]))
    assert labels(figure) == ["over eager", "over torch.compile"]
    assert drawn(figure, 0) == {"#000000s": [pytest.approx(2)], "#E69F00^": [pytest.approx(0.5)]}
    assert figure.axes[0].get_xscale() == "log"
    assert any(list(line.get_xdata()) == [1, 1] for line in figure.axes[0].lines)


@pytest.mark.parametrize(
    "made", [simple({"eager": 4e-4, "fused-auto": 2e-4}), inference({"eager": 4e-4, "onnx": 1e-4})]
)
def test_what_a_mark_and_a_line_are_stands_above_a_single_panel_too(made: dict):
    made["records"] = made["records"][:1]
    figure = speedup(made) or plots.inference(made)
    assert len(figure.axes) == 1
    title = next(text for text in figure.texts if plots.RATIOS in text.get_text())
    figure.draw_without_rendering()
    box = title.get_window_extent()
    assert 0 < box.x0 < box.x1 < figure.bbox.x1


def test_graphs_are_set_against_graphs():
    rows = [timed("eager", 1e-4), timed("eager-graph", 6e-5), timed("fused-triton-graph", 2e-5)]
    figure = speedup(results([record(TUTORIAL, Phase.FORWARD, rows)], gpu=True))
    assert labels(figure) == ["over eager, both as CUDA graphs"]
    assert drawn(figure, 0) == {"#000000s": [pytest.approx(3)]}


def test_inference_is_eagers_time_over_each_of_the_others():
    figure = plots.inference(inference({"eager": 4e-4, "aot": 5e-4, "onnx": 1e-4}))
    assert labels(figure) == ["aot", "onnx"]
    assert [axes.get_title() for axes in figure.axes] == [phase.value for phase in MODEL_PHASES]
    for panel in range(2):
        assert drawn(figure, panel) == {
            "#009E73v": [pytest.approx(0.8)],
            "#0072B2o": [pytest.approx(4)],
        }
    assert plots.inference(simple(TIMES)) is None


def test_losses_and_models_are_in_plots_of_their_own():
    made = simple({"eager": 4e-4, "fused-auto": 2e-4}, (TUTORIAL,))
    alone = speedup(made)
    made["records"] += inference({"eager": 4e-4, "onnx": 1e-4})["records"]
    assert len(speedup(made).axes) == len(alone.axes) == 4
    assert labels(memory(made)) == ["eager", "fused-auto"]


def test_the_roofline_is_bandwidth_over_the_bytes_of_a_row():
    figure = roofline(simple({"eager": 1e-3, "copy": 1e-4}, ALL))
    assert labels(figure) == ["eager", "copy"]
    forward, training = figure.axes
    assert (forward.get_title(), training.get_title()) == ("forward", "forward+backward")
    eager, copy = forward.lines
    assert list(eager.get_xdata()) == [2 * 4, 64 * 4, 1024 * 4]
    assert list(eager.get_ydata()) == pytest.approx(
        [case.bytes_moved(Phase.FORWARD) / 1e-3 / 1e9 for case in SWEEP]
    )
    assert list(copy.get_ydata()) == pytest.approx([10 * rate for rate in eager.get_ydata()])
    assert roofline(simple(TIMES, (TUTORIAL,))) is None


def test_memory_is_in_logits_and_drawn_at_an_edge_where_there_is_none():
    rows = [timed("eager", 1e-4), timed("compile", 1e-4), timed("copy", 1e-5)]
    object.__setattr__(rows[1], "footprint", None)
    made = results([record(TUTORIAL, Phase.FORWARD, rows)])
    assert drawn(memory(made), 0) == {"#000000s": [1200 / 800]}
    made["records"][0]["providers"][0]["peak_logits"] = 0.0
    assert drawn(memory(made), 0) == {"#000000s": [0.01]}


def test_overhead_is_in_microseconds_by_phase():
    made = simple({"eager": 1e-4, "fused-auto": 3e-4}, (TUTORIAL, BOARD))
    figure = overhead(made)
    (axes,) = figure.axes  # a board is not tiny
    assert axes.get_title() == TUTORIAL.name
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [p.value for p in LOSS_PHASES]
    assert drawn(figure, 0)["#0072B2o"] == pytest.approx([300.0] * 4)
    assert axes.get_xlabel() == "wall time (µs)"


def test_a_provider_without_a_time_is_in_no_plot():
    rows = [timed("eager", 1e-4), untimed("fused-auto", "wrong", "loss: off")]
    made = results([record(TUTORIAL, phase, rows) for phase in LOSS_PHASES])
    assert speedup(made) is None
    assert labels(overhead(made)) == labels(memory(made)) == ["eager"]
