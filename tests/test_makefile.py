import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split()


def make(folder: Path, *arguments: str) -> str:
    # The suite itself may run under make, whose variables are not meant for this one.
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VENV", "PYTHON", "OUT")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A fresh clone's files, as far as make looks at them: no virtual environment."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fused_loss", "kernels", "export", "bench"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_help_names_targets_that_exist():
    named = re.findall(r"^make (\S+)", make(ROOT, "help"), re.MULTILINE)
    assert {"demo", "test", "check", "bench", "gpu"} <= set(named) <= set(TARGETS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_what_the_pages_name_exists(name: str):
    page = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"^make (\S+)|`make (\S+)`", page, re.MULTILINE)
    assert named
    assert {first or second for first, second in named} <= set(TARGETS)


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_a_fresh_clone_makes_its_own_environment(target: str, bare: Path):
    steps = make(bare, "--dry-run", target)
    order = [steps.index(step) for step in ("-m venv .venv", "pip install", "touch .venv")]
    assert order == sorted(order)
    assert "-c constraints.txt -e '.[all]'" in steps
    (bare / ".venv").mkdir()
    (bare / ".venv/.installed").touch()
    assert "pip install" not in make(bare, "--dry-run", target)


def test_gpu_installs_nothing(bare: Path):
    steps = make(bare, "--dry-run", "gpu")
    assert "pip install" not in steps
    assert "-m venv" not in steps
    assert "python3 -m pytest" in steps


def test_gpu_runs_each_gpu_test_once(bare: Path):
    """What only a GPU can show comes first, and by few workers."""
    steps = make(bare, "--dry-run", "gpu")
    first, then = re.findall(r"^try -n (?:4|auto) (.*);", steps, re.MULTILINE)
    alone = re.findall(r"tests/\S+\.py", first)
    assert re.findall(r"--ignore=(\S+)", then) == alone
    assert all("pytestmark = pytest.mark.gpu" in (ROOT / name).read_text() for name in alone)


def test_gpu_is_bounded_and_writes_where_it_is_told(bare: Path):
    steps = make(bare, "--dry-run", "gpu")
    assert "tee -a bench/results/new/tests.log" in steps
    assert "bench --suite gpu --out bench/results/new --limit" in steps
    assert "tee -a here/tests.log" in make(bare, "--dry-run", "gpu", "OUT=here")


def test_the_tree_of_links_is_the_wheel_s(bare: Path):
    make(bare, "tree")
    make(bare, "tree")  # again, over the old one
    tree = bare / "build/tree/fused_loss"
    for folder, place in (
        ("fused_loss", tree),
        ("kernels", tree / "kernels"),
        ("export", tree / "export"),
        ("bench", tree / "bench"),
    ):
        sources = sorted(path.resolve() for path in (bare / folder).glob("*.py"))
        assert [path.resolve() for path in sorted(place.glob("*.py"))] == sources
    assert (tree / "py.typed").exists()


def test_ci_runs_what_a_newcomer_runs():
    script = ROOT / ".ci/run"
    text = script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111, "executable"
    subprocess.run(["bash", "-n", script], check=True)
    assert re.findall(r"^make (\S+)$", text, re.MULTILINE) == ["check", "test"]
    assert re.findall(r"smoke_installed.py (\S+)$", text, re.MULTILINE) == ["bare", "export"]
