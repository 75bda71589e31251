import pytest
from _bench_results import (
    BOARD,
    JITTER,
    TUTORIAL,
    inference,
    record,
    results,
    simple,
    timed,
    untimed,
)

from fused_loss.bench.cases import Phase
from fused_loss.bench.slower import rivalries, where_slower


def test_like_stands_against_like():
    rows = [
        timed("eager", 1e-4),
        timed("eager-float32", 5e-4),
        timed("compile", 2e-4),
        timed("fused-auto", 8e-4),
        timed("fused-triton", 4e-4),
        timed("eager-graph", 1e-5),
        timed("fused-triton-graph", 3e-5),
        timed("copy", 1e-6),
    ]
    found = rivalries(results([record(TUTORIAL, Phase.FORWARD, rows)]))
    pairs = {(one.ours, one.rival): one.ratio.value for one in found}
    assert pairs == {
        ("fused-triton", "eager"): pytest.approx(4),
        ("fused-triton", "compile"): pytest.approx(2),
        ("fused-triton-graph", "eager-graph"): pytest.approx(3),
    }


def test_every_loss_beyond_the_spread_is_listed_and_no_other():
    wide = [0.5, 0.8, 1.0, 1.5, 3.0]
    made = results(
        [
            record(TUTORIAL, Phase.FORWARD, [timed("eager", 1e-4), timed("fused-auto", 2e-4)]),
            record(
                TUTORIAL,
                Phase.TRAINING,
                [timed("eager", 1e-4), timed("compile", 3e-4), timed("fused-auto", 2.5e-4)],
            ),
            record(BOARD, Phase.FORWARD, [timed("eager", 2e-4), timed("fused-auto", 1e-4)]),
            record(
                BOARD,
                Phase.TRAINING,
                [timed("eager", 1e-4), timed("fused-auto", 1.2e-4, wide)],
            ),
        ]
    )
    text = where_slower(made)
    assert "in 2 of 5 comparisons; in 1 more it is slower within the spread." in text
    assert "| case | forward | forward+backward |" in text
    assert "| tutorial-100x2 | eager 2.00× | eager 2.50× |" in text
    assert "compile" not in text.partition("|")[2]
    assert BOARD.name not in text


def test_the_table_is_left_out_where_nothing_is_slower():
    made = simple({"eager": 2e-4, "compile": 3e-4, "fused-auto": 1e-4})
    assert where_slower(made).endswith("in 0 of 8 comparisons.")


def test_inference_stands_apart_and_has_its_own_sentence():
    made = simple({"eager": 2e-4, "fused-auto": 1e-4})
    assert "exported file" not in where_slower(made)
    model = inference(
        {"eager": 4e-4, "compile": 1e-4, "aot": 2e-4, "onnx": 3e-4, "onnx-bound": 3e-4}
    )
    made["records"] += model["records"]
    text = where_slower(made)
    assert "Our fastest provider is slower than eager or torch.compile, in the median" in text
    assert "in 0 of 4 comparisons." in text
    assert "The exported file in onnxruntime, at its fastest, is slower than PyTorch" in text
    assert "in 4 of 6 comparisons." in text
    assert "| case | inference on 1 thread | inference on 2 threads |" in text
    assert "| mlp-256-batch-64 | compile 3.00×, aot 1.50× | compile 3.00×, aot 1.50× |" in text


def test_a_provider_of_ours_without_a_time_is_no_win():
    rows = [timed("eager", 1e-4, JITTER), untimed("fused-auto", "wrong", "loss: off")]
    made = results([record(TUTORIAL, Phase.FORWARD, rows)])
    text = where_slower(made)
    assert "Nothing was compared" in text
    assert "None of ours has a time on tutorial-100x2 (forward)." in text
