"""Ctrl-C and SIGTERM, while the command is imported and while it runs."""

import os
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from _export import called

from fused_loss import cli, signals
from fused_loss.signals import Interrupted, Terminated, unwinding

SCRIPT = str(Path(sysconfig.get_path("scripts")) / "fused-loss")
ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
either = pytest.mark.parametrize("number", list(ENDS))
# What PyTorch makes of a signal while it imports NumPy.
SWALLOWS = """
import os
try:
    os.kill(os.getpid(), {number:d})
except BaseException:
    pass
print("went on")
"""


def end(folder: Path, *words: str) -> tuple[int, str, str]:
    """How a process ends that finds the modules of the folder first."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@either
@pytest.mark.parametrize("words", [(SCRIPT,), (sys.executable, "-m", "fused_loss")])
def test_a_signal_that_torch_would_lose_ends_the_command(tmp_path, number, words):
    (tmp_path / "torch.py").write_text(SWALLOWS.format(number=number))
    code, said = ENDS[number]
    assert end(tmp_path, *words, "bench") == (code, "", f"fused-loss: {said}\n")


@either
def test_a_signal_while_a_command_is_imported_ends_it(tmp_path, number):
    (tmp_path / "rich.py").write_text(SWALLOWS.format(number=number))
    (tmp_path / "a_command.py").write_text("import rich")
    script = tmp_path / "fused-loss"
    script.write_text(
        "from fused_loss import cli\n"
        "cli.COMMANDS['test'] = cli.Command('a_command', 'bench', 'a test')\n"
        "cli.main(['test'])\n"
    )
    code, said = ENDS[number]
    assert end(tmp_path, sys.executable, str(script)) == (code, "", f"fused-loss: {said}\n")


def test_another_process_keeps_its_handlers(tmp_path):
    (tmp_path / "torch.py").write_text(SWALLOWS.format(number=signal.SIGINT) + "raise OSError")
    code, out, err = end(tmp_path, sys.executable, "-c", "import fused_loss")
    assert (code, out) == (1, "went on\n")
    assert err.endswith("OSError\n")


@pytest.mark.parametrize(
    ("called", "original", "is_command"),
    [
        (["/usr/bin/fused-loss", "demo"], [], True),
        ([r"fused-loss.exe"], [], True),
        (["-m"], ["python", "-m", "fused_loss.cli", "demo"], True),
        (["-m"], ["python", "-mfused_loss"], True),
        (["-m"], ["python", "-Im", "fused_loss", "-m"], True),
        (["-m"], ["python", "-m", "fused_loss.bench.readme"], False),
        (["-m"], ["python", "-X", "dev", "-m", "train", "--loss", "fused_loss"], False),
        (["fused-loss.py"], ["python", "fused-loss.py"], False),
        (["train.py"], ["python", "train.py"], False),
        ([], [], False),
    ],
)
def test_the_command_is_known_by_its_name(monkeypatch, called, original, is_command):
    monkeypatch.setattr(sys, "argv", called)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert signals.is_command() is is_command


@either
@pytest.mark.parametrize("then", [None, ImportError("initialization failed")])
def test_a_signal_that_a_running_command_swallows_is_told_all_the_same(
    monkeypatch, capsys, number, then
):
    def run(args):
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            if then:
                raise then from None
        return 0

    monkeypatch.setattr("fused_loss.bench.report.run", run)
    code, said = ENDS[number]
    before = [signal.getsignal(n) for n in ENDS]
    assert called(capsys, "bench") == (code, "", f"fused-loss: {said}\n")
    assert [signal.getsignal(n) for n in ENDS] == before
    assert code in (cli.INTERRUPTED, cli.TERMINATED)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)]
)
def test_either_signal_unwinds(number, error):
    left = []
    with pytest.raises(error), unwinding():  # noqa: PT012
        try:
            os.kill(os.getpid(), number)
            left.append("went on")
        finally:
            left.append("cleaned up")
    assert left == ["cleaned up"]


def test_what_is_ignored_or_handled_by_another_stays_so(monkeypatch):
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with unwinding():
            os.kill(os.getpid(), signal.SIGINT)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with unwinding():
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_a_thread_has_no_signals():
    done = []

    def work():
        with unwinding():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_handled_interrupt_leaves_the_exit_code_alone(tmp_path):
    """An `exec`, as a dataclass makes, is interrupted; Python must not end by the signal itself."""
    (tmp_path / "a_program.py").write_text(
        "import sys\n"
        "from fused_loss.signals import unwinding\n"
        "try:\n"
        "    with unwinding():\n"
        f"        exec({SWALLOWS.format(number=signal.SIGINT).replace('pass', 'raise')!r})\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    assert end(tmp_path, sys.executable, "-m", "a_program") == (130, "", "")
