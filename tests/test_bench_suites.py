"""The registry: what is in it, and that it needs nothing but torch."""

import subprocess
import sys

import pytest
import torch

from fused_loss.bench.suites import CASES, SUITES, custom, suite

FAMILIES = {
    "tutorial",
    "tabular",
    "board",
    "distillation",
    "autoencoder",
    "dense",
    "language",
    "sweep",
    "batch",
}


def test_a_name_means_one_case():
    assert all(CASES[case.name] == case for suite in SUITES.values() for case in suite)
    assert all(len({case.name for case in suite}) == len(suite) for suite in SUITES.values())


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_every_family_is_in_the_large_suites(suite: str):
    assert {case.family for case in SUITES[suite]} == FAMILIES


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_the_sweep_holds_the_number_of_logits(suite: str):
    sizes = {case.N * case.C for case in SUITES[suite] if case.family == "sweep"}
    assert len(sizes) == 1


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_the_batches_hold_the_number_of_classes(suite: str):
    batches = [case for case in SUITES[suite] if case.family == "batch"]
    assert len({case.C for case in batches}) == 1
    assert len({case.N for case in batches}) == len(batches) > 2


def test_inference_is_two_models_at_three_batches():
    assert {(case.model, case.N) for case in SUITES["onnx"]} == {
        (model, N) for model in ("mlp-256", "cnn") for N in (1, 64, 4096)
    }


def test_all_is_in_the_full_suite_and_on_a_cpu_what_it_can_hold():
    everything = {case.name for name in ("smoke", "cpu", "gpu", "onnx") for case in SUITES[name]}
    assert {case.name for case in suite("full", torch.device("cuda", 0))} == everything
    held = suite("full", torch.device("cpu"))
    assert set(held) == {*SUITES["cpu"], *SUITES["onnx"]}
    assert suite("gpu", torch.device("cpu")) == SUITES["gpu"]


def test_a_shape_of_the_user():
    case = custom("512,1000,16", "bfloat16")
    assert (case.logits_shape, case.regression_shape) == ((512, 1000), (512, 16))
    assert case.logits_dtype == case.regression_dtype == "bfloat16"


@pytest.mark.parametrize("shape", ["512,1000", "512,1000,x", "512,1000,-1", "512,0,1", ""])
def test_a_shape_that_is_none(shape: str):
    with pytest.raises(ValueError, match=r"N,C,D|at least 1"):
        custom(shape, "float32")


def test_the_registry_needs_nothing_but_torch():
    check = (
        "import sys, fused_loss.bench.suites, fused_loss.bench.providers, fused_loss.bench.report;"
        "found = {'pytest', 'pytest_benchmark', 'rich', 'matplotlib', 'triton'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
