"""What the root's conftest.py does where there is a GPU, with one that is made up."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]

FAULTY = """
    import torch

    torch.cuda.is_available = lambda: True
    faulted = []

    def synchronize():
        if faulted:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    torch.cuda.synchronize = synchronize
"""

TESTS = """
    import pytest
    import faulty

    @pytest.mark.parametrize("k", range(6))
    def test_on_the_gpu(k):
        if k == 1:
            faulty.faulted.append(k)
        assert not faulty.faulted
"""


def test_a_worker_whose_kernel_faulted_is_replaced(tmp_path: Path):
    """Every later test of that process would fail with it."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "faulty.py").write_text(textwrap.dedent(FAULTY), encoding="utf-8")
    (tmp_path / "test_faulty.py").write_text(textwrap.dedent(TESTS), encoding="utf-8")
    names = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "CI")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "faulty", "test_faulty.py"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in names}
        | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for name in ("assert not [1]", "crashed", "5 passed"):
        assert name in done.stdout, done.stdout
