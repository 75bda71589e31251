"""What the root's conftest.py does where there is a GPU, with one that is made up."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]

# All that conftest.py asks of PyTorch.
TORCH = """
    class cuda:
        faulted = []

        def is_available():
            return True

        def synchronize():
            if cuda.faulted:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""

TESTS = """
    import pytest
    from torch import cuda

    @pytest.mark.parametrize("k", range(6))
    def test_on_the_gpu(k):
        if k == 1:
            cuda.faulted.append(k)
        assert not cuda.faulted
"""


def test_a_worker_whose_kernel_faulted_is_replaced(tmp_path: Path):
    """Every later test of that process would fail with it."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "torch.py").write_text(textwrap.dedent(TORCH), encoding="utf-8")
    (tmp_path / "test_faulty.py").write_text(textwrap.dedent(TESTS), encoding="utf-8")
    names = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "CI")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "1", "test_faulty.py"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in names}
        | {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for name in ("assert not [1]", "crashed", "5 passed"):
        assert name in done.stdout, done.stdout
