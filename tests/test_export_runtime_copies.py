"""A session is copied, and sent to other processes, by its file and its options."""

import copy
import hashlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from _deployed import labelled_bytes
from _export import mlp_bytes, rows

from fused_loss.export import OnnxDualHead, OnnxLoadError

CPU = "CPUExecutionProvider"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(labelled_bytes())
    return path


def pickled(session):
    return pickle.loads(pickle.dumps(session))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy, copy.copy])
def test_a_copy_has_the_same_file_and_options(path, copied, monkeypatch):
    monkeypatch.chdir(path.parent)
    session = OnnxDualHead("m.onnx", 2, iter([(CPU, {})]), spinning=False)
    monkeypatch.chdir("/")  # where another process may be
    found = copied(session)
    assert all(map(np.array_equal, found.predict(rows(3)), session.predict(rows(3))))
    assert found.sha256 == session.sha256 == hashlib.sha256(labelled_bytes()).hexdigest()
    assert (found.class_names, found.providers) == (session.class_names, (CPU,))
    options = found._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_copy_of_a_file_that_has_changed_or_gone_is_an_error(path):
    session = OnnxDualHead(path)
    sent = pickle.dumps(session)
    path.write_bytes(mlp_bytes())  # whole, and another one
    said = f"is not the file that was asked for: .* sha256='{session.sha256}' is wanted"
    for again in (lambda: pickle.loads(sent), lambda: copy.deepcopy(session)):
        with pytest.raises(OnnxLoadError, match=said):
            again()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*m\.onnx"):
        pickle.loads(sent)


def test_a_link_is_followed_once(path):
    link = path.with_name("latest.onnx")
    link.symlink_to(path)
    sent = pickle.dumps(OnnxDualHead(link))
    link.unlink()
    assert pickle.loads(sent)(rows(1))[0].shape == (1, 3)


def test_a_spawned_worker_runs_it(path):
    session, x = OnnxDualHead(path), rows(5).numpy()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = pool.submit(session, x).result(timeout=120)
    assert all(map(np.array_equal, found, session(x)))
