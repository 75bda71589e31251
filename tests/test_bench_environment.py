"""What is said of the machine."""

import json

import torch
from _bench import CPU

from fused_loss.bench import environment as module


def test_the_environment_is_plain_json_and_names_the_machine():
    found = module.environment(CPU)
    assert json.loads(json.dumps(found)) == found
    assert found["device"]["name"]
    assert found["device"]["cores"] >= 1
    assert found["device"]["vectors"] == torch.backends.cpu.get_cpu_capability()
    public = found["packages"]["torch"].partition("+")[0]
    assert public == torch.__version__.partition("+")[0]
    assert found["threads"]["torch"] >= 1


def test_outside_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert module.commit() is None
