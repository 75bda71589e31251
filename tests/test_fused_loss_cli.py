"""The command itself: which module it reaches, what it prints, and its exit codes."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _export import called, contents, mlp_bytes, rows

import fused_loss
from fused_loss import cli
from fused_loss.export import OnnxExportError, OnnxVerificationError
from fused_loss.export.errors import MissingDependencyError, UsageError
from fused_loss.export.report import VerificationReport
from fused_loss.export.sources import load_model

REFUSED = VerificationReport("m.onnx", "00", 20, 10, {}, {}, {}, 0, "data", ("damaged",))
ZOO = """
from torch import nn
from fused_loss import DualHead

def factory():
    return DualHead(nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 3))
"""


@pytest.fixture
def command(monkeypatch):
    """`command(run)` puts a module with that `run(args)` behind `fused-loss test --count N`."""

    def install(run):
        module = SimpleNamespace(
            configure=lambda parser: parser.add_argument("--count", type=int, default=0), run=run
        )
        monkeypatch.setitem(sys.modules, "a_command", module)
        monkeypatch.setitem(cli.COMMANDS, "test", cli.Command("a_command", "bench", "a test"))

    return install


def raising(error):
    def run(args):
        raise error

    return run


def test_a_command_gets_its_arguments_and_gives_the_exit_code(command, capsys):
    command(lambda args: print("working") or args.count)
    assert called(capsys, "test", "--count", 3) == (3, "working\n", "")
    assert called(capsys, "test") == (0, "working\n", "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OnnxExportError("no such operator"), 1, "no such operator"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (ValueError(), 1, "ValueError"),
        (UsageError("no such file"), 2, "no such file"),
        (OnnxVerificationError(REFUSED), 3, "m.onnx is refused:\ndamaged"),
        (MissingDependencyError("install fused-loss[export]"), 4, "install fused-loss[export]"),
        (
            ModuleNotFoundError("No module named 'rich'"),
            4,
            "No module named 'rich': pip install 'fused-loss[bench]'",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_message_and_its_exit_code(command, capsys, error, code, said):
    command(raising(error))
    assert called(capsys, "test") == (code, "", f"fused-loss: {said}\n")


def test_a_traceback_is_there_for_those_who_ask(command, capsys, monkeypatch):
    command(raising(OnnxExportError("no such operator")))
    monkeypatch.setenv("FUSED_LOSS_DEBUG", "1")
    with pytest.raises(OnnxExportError, match="no such operator"):
        called(capsys, "test")


def test_a_module_that_cannot_be_imported_names_the_extra_of_its_command(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fused_loss.bench.report", None)
    code, out, err = called(capsys, "bench")
    assert (code, out) == (4, "")
    assert err.endswith(": pip install 'fused-loss[bench]'\n")


def test_version_and_help(capsys):
    assert called(capsys, "--version") == (0, f"fused-loss {fused_loss.__version__}\n", "")
    for word in ("--help", "-h"):
        code, out, err = called(capsys, word)
        assert (code, err) == (0, "")
        for name, known in cli.COMMANDS.items():
            assert f"    {name} " in out
            assert known.about.split(",")[0] in " ".join(out.split())


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_reaches_the_module_of_the_command(capsys, name):
    code, out, err = called(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: fused-loss {name} ")
    options = {"demo": "-h", "bench": "--suite", "predict": "--threads", "inspect": "--json"}
    assert options.get(name, "--checkpoint") in out
    assert cli.COMMANDS[name].module in sys.modules


@pytest.mark.parametrize("words", [(), *((name,) for name in cli.COMMANDS)])
def test_help_is_readable_on_80_columns_and_in_ascii(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = called(capsys, *words, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out.isascii()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("exprot",), "invalid choice: 'exprot'"),
        (("--nonsense",), "the following arguments are required: COMMAND"),
        (("verify", "m.onnx", "--nonsense"), "required: --model"),
    ],
)
def test_usage_is_2(capsys, words, said):
    code, out, err = called(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("usage: fused-loss")
    assert said in err


@pytest.mark.parametrize("name", ["fused_loss", "fused_loss.cli"])
def test_python_runs_the_package_as_the_command(name):
    words = [sys.executable, "-m", name, "exprot"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: fused-loss ")


SCRIPT = Path(sysconfig.get_path("scripts")) / "fused-loss"


def installed(folder, *words, **options):
    """The installed script, as a user calls it, in a folder of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | options.pop("env", {})
    return subprocess.run(
        [SCRIPT, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def test_export_verify_and_predict_as_a_user_calls_them(tmp_path, monkeypatch, capsys):
    (tmp_path / "zoo.py").write_text(ZOO)
    # Only a model's module is looked up in the current folder: this one stands in nobody's way.
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('imported')")
    np.save(tmp_path / "x.npy", rows(5).numpy())
    name = "größe-名.onnx"
    model = ("--model", "zoo:factory", "--seed", 3)
    ascii_only = {"env": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}}
    done = installed(tmp_path, "export", name, *model, "--input-shape", 4, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(r"gr\xf6\xdfe-\u540d.onnx: opset 20, IR 10, sha256 ")
    assert "Traceback" not in done.stderr

    done = installed(tmp_path, "predict", name, "x.npy")
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split(",")[-1] == "label"
    monkeypatch.chdir(tmp_path)
    assert called(capsys, "verify", name, *model, "-q") == (0, "", "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        labels = load_model("zoo:factory")(rows(5))[1].argmax(1).tolist()
    assert [int(line.split(",")[-1]) for line in lines] == labels
    files = {"zoo.py", "onnxruntime.py", "x.npy", name}
    assert {file for file in contents(tmp_path) if "__pycache__" not in file} == files


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path):
    (tmp_path / "m.onnx").write_bytes(mlp_bytes())
    np.save(tmp_path / "x.npy", np.ones((200_000, 4), "f"))
    process = subprocess.Popen(
        [SCRIPT, "predict", "m.onnx", "x.npy"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("regression_output_0,")
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(300) == 1


def test_a_command_that_is_terminated_leaves_nothing_half_written(tmp_path):
    (tmp_path / "m.onnx").write_bytes(mlp_bytes())
    (tmp_path / "o.csv").write_text("old")
    np.save(tmp_path / "x.npy", np.ones((3_000_000, 4), "f"))
    before = contents(tmp_path)
    process = subprocess.Popen(
        [SCRIPT, "predict", "m.onnx", "x.npy", "-o", "o.csv"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(tmp_path.iterdir())) == len(before):
        time.sleep(0.01)
    process.terminate()
    assert process.communicate(timeout=300)[1] == "fused-loss: terminated\n"
    assert process.returncode == cli.TERMINATED
    assert contents(tmp_path) == before


def test_the_command_alone_loads_no_optional_package():
    code = (
        "import sys; from fused_loss.cli import main; code = main(['--version'])\n"
        "assert code == 0 and not {'onnx', 'onnxruntime', 'triton', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
