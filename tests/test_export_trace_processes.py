"""The same model gives the same bytes in another process, and nothing of the machine is in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from _export import mlp, rows

from fused_loss.export import export_onnx

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from _export import mlp, rows
from fused_loss.export import export_onnx
export_onnx(mlp(), rows(), sys.argv[2], verify_batches=(2,))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The bytes that this process and another one write, and what must not be in them."""
    mine, theirs = (tmp_path_factory.mktemp(f"of-someone-{i}") for i in range(2))
    export_onnx(mlp(), rows(), mine / "m.onnx", verify_batches=(2,))
    script, tests = theirs / "their_script.py", Path(__file__).parent
    script.write_text(SCRIPT)
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    environment = {"PYTHONHASHSEED": seed, "USER": "someone", "OMP_NUM_THREADS": "2"}
    arguments = [sys.executable, script, tests, theirs / "secret-name.onnx"]
    subprocess.run(arguments, cwd=theirs, env=os.environ | environment, check=True)
    names = [mine.name, theirs.name, "someone", "their_script", "secret-name", ".py", str(tests)]
    return (mine / "m.onnx").read_bytes(), (theirs / "secret-name.onnx").read_bytes(), names


def test_two_processes_write_the_same_bytes(exported):
    assert exported[0] == exported[1]


def test_no_path_user_or_source_line_is_in_the_file(exported):
    told = [name for name in (*exported[2], str(Path.home())) if name.encode() in exported[1]]
    assert not told
    assert b"self." not in exported[1]
