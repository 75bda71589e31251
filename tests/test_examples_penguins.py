"""The commands of examples/penguins.sh, in this process; the slow test has `sh` run it."""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fused_loss.cli import main
from fused_loss.demo_data import SPECIES
from fused_loss.export import OnnxDualHead

SCRIPT = Path(__file__).parents[1] / "examples" / "penguins.sh"


def commands(out, *options):
    """What the script calls `fused-loss` with, `DIR` and the demo's options put in."""
    for line in SCRIPT.read_text().replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace('"$@"', shlex.join(options)).replace("$out", str(out)))
        if words[:1] == ["fused-loss"]:
            yield words[1:]
        elif words[:1] == ["printf"]:
            Path(words[-1]).write_text(words[1].replace("\\n", "\n"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands leave, and what they print."""
    out = tmp_path_factory.mktemp("penguins") / "birds"
    names = []
    for words in commands(out, "--epochs", "15"):
        assert main(words) == 0, words
        names.append(words[0])
    assert names == ["demo", "export", "verify", "inspect", "predict"]
    return out


def test_predictions_are_grams_and_species_by_name(folder):
    with (folder / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [
        "body_mass_0 [g]",
        *(f"species_{name}" for name in SPECIES),
        "label",
        "class",
    ]
    with np.load(folder / "held-out.npz") as known:
        mass, species = known["body_mass_g"][:, 0], known["species"]
        inputs = known["input"]
    predicted = np.array([float(line["body_mass_0 [g]"]) for line in table])
    # Better than the mean of all birds, and than the most frequent species.
    assert np.square(predicted - mass).mean() < np.square(mass - mass.mean()).mean()
    right = np.array([line["class"] for line in table]) == species
    assert right.mean() > max(np.mean(species == name) for name in SPECIES)
    found = OnnxDualHead(folder / "birds.onnx").predict(inputs)
    assert np.array_equal(predicted.astype("f"), found.regression[:, 0])
    assert [line["class"] for line in table] == [SPECIES[i] for i in found.label]
    sums = [sum(float(line[f"species_{name}"]) for name in SPECIES) for line in table]
    assert np.allclose(sums, 1, rtol=0, atol=4 * np.finfo("f").eps)


@pytest.mark.slow
def test_a_shell_runs_it(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", SCRIPT, tmp_path / "of birds", "--epochs", "2"],
        env=os.environ | {"PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sealed: it is what was written" in done.stdout
    assert done.stdout.endswith("predictions.csv: 69 rows\n")
