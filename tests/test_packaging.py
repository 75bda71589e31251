"""The wheel, built offline from a copy of the tree, as pip would install it."""

import configparser
import email
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.message import Message
from pathlib import Path

import pytest

import fused_loss

ROOT = Path(__file__).parents[1]
INSTALLED = {
    "fused_loss": "fused_loss",
    "kernels": "fused_loss/kernels",
    "export": "fused_loss/export",
    "bench": "fused_loss/bench",
}
EXTRAS = {"triton", "export", "parquet", "examples", "bench", "demo", "test", "dev", "all"}


def run(*arguments: object, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=clean | environment,
        cwd=environment.get("HOME"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy, since a build leaves files beside setup.py; whole folders, so that a file that no
    # checkout would hold (tests, results, caches) is there to be left out.
    for name in (*INSTALLED, "tests"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "conftest.py"):
        shutil.copy(ROOT / name, source)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    run(*pip, *build, HOME=str(folder))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return email.message_from_string(information(wheel, "METADATA"))


def information(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (n for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def test_the_wheel_holds_the_tree_and_nothing_else(names: set[str]):
    expected = {"fused_loss/py.typed"} | {
        f"{package}/{path.name}"
        for folder, package in INSTALLED.items()
        for path in (ROOT / folder).glob("*.py")
    }
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_no_source_file_lies_deeper_than_the_wheel_reaches():
    deep = [path for folder in INSTALLED for path in (ROOT / folder).glob("*/**/*.py")]
    assert not deep, "add the sub-folder to setup.py, and its files to this test"


def test_there_is_one_top_level_package(wheel: Path, names: set[str]):
    assert information(wheel, "top_level.txt").split() == ["fused_loss"]
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"fused_loss", f"fused_loss-{fused_loss.__version__}.dist-info"}
    assert "Root-Is-Purelib: true" in information(wheel, "WHEEL")


def test_the_version_is_said_once(metadata: Message):
    assert metadata["Name"] == "fused-loss"
    assert metadata["Version"] == fused_loss.__version__
    assert f"## {fused_loss.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_extras_and_their_union(metadata: Message):
    wanted: dict[str, set[str]] = {extra: set() for extra in metadata.get_all("Provides-Extra")}
    always = set()
    for requirement in metadata.get_all("Requires-Dist"):
        what, _, condition = requirement.partition(";")
        extras = [extra for extra in wanted if f'extra == "{extra}"' in condition]
        for extra in extras:
            wanted[extra].add(what.strip())
        if not extras:
            always.add(what.strip())
    assert set(wanted) == EXTRAS
    assert always == {"torch>=2.11", "numpy>=1.26"}
    assert wanted["all"] == set.union(*(wanted[extra] for extra in EXTRAS - {"all"}))
    assert wanted["export"] <= wanted["demo"] <= wanted["examples"] <= wanted["test"]
    # The bare install needs neither of these.
    assert not {what for what in always if what.startswith(("triton", "onnx"))}


def by_name(lines: Iterable[str]) -> dict[str, list]:
    """The versions that each requirement allows."""
    from packaging.requirements import Requirement

    found: dict[str, list] = {}
    for requirement in map(Requirement, lines):
        found.setdefault(requirement.name.lower(), []).append(requirement.specifier)
    return found


def pinned(file: str) -> dict[str, list]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return by_name(line for line in lines if line.strip() and not line.startswith("#"))


def test_the_oldest_versions_are_the_lowest_that_are_allowed(metadata: Message):
    ranges = by_name(metadata.get_all("Requires-Dist"))
    pins = pinned("constraints-oldest.txt")
    assert pins.keys() == {"torch", "triton", "numpy"}
    for name in ("torch", "triton"):
        ((pin,),) = pins[name]
        for ((lowest,),) in zip(ranges[name], strict=True):
            assert lowest.operator == ">="
            assert pin.version == f"{lowest.version}.0"


def test_what_is_tested_is_pinned_and_in_range(metadata: Message):
    ranges, pins = by_name(metadata.get_all("Requires-Dist")), pinned("constraints.txt")
    assert ranges.keys() <= pins.keys()
    for name, specifiers in ranges.items():
        for pin in pins[name]:
            (version,) = (specifier.version for specifier in pin)
            assert all(specifier.contains(version) for specifier in specifiers), name


def test_the_command(wheel: Path):
    parser = configparser.ConfigParser()
    parser.read_string(information(wheel, "entry_points.txt"))
    assert dict(parser["console_scripts"]) == {"fused-loss": "fused_loss.cli:main"}


def test_another_package_named_kernels_is_left_alone(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    for name in ("kernels", "export", "bench", "tests"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(f"WHOSE = 'another {name}'\n")
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, HOME=str(tmp_path))
    # First on the path: the checkout is installed too, beside torch.
    script = f"""
import sys
sys.path[:0] = [{str(site)!r}]
import kernels, export, bench, tests
import fused_loss, fused_loss.kernels
assert [x.WHOSE for x in (kernels, export, bench, tests)] == [
    "another kernels", "another export", "another bench", "another tests"
]
assert not {{"triton", "onnx", "onnxruntime", "onnxscript"}} & set(sys.modules)
print(fused_loss.__file__, fused_loss.kernels.__file__, sep="\\n")
print(fused_loss.combined_loss.__module__)
"""
    said = run("-c", script, HOME=str(tmp_path)).split()
    installed = site / "fused_loss"
    assert said[:2] == [str(installed / "__init__.py"), str(installed / "kernels/__init__.py")]
    assert said[2] == "fused_loss.functional"
