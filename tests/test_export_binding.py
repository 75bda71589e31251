from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from _export import mlp_bytes, rows

from fused_loss.export import OnnxDualHead


@pytest.fixture
def session(tmp_path):
    (tmp_path / "m.onnx").write_bytes(mlp_bytes())
    return OnnxDualHead(tmp_path / "m.onnx")


def test_bound_arrays_give_what_a_call_gives_and_stay_where_they_are(session):
    bound = session.bind(3)
    assert [array.shape for array in bound.inputs + bound.outputs] == [(3, 4), (3, 3), (3, 3)]
    for x in (rows(3).numpy(), -rows(3).numpy()):
        bound.inputs[0][:] = x
        found = bound()
        assert all(map(np.array_equal, found, session(x)))
        assert all(a is b for a, b in zip(found, bound.outputs, strict=True))
    assert all(map(np.array_equal, session.bind(2)(), session(np.zeros((2, 4), "f"))))


def test_each_thread_binds_its_own(session):
    batches = [rows(n).numpy() for n in range(1, 20)]

    def run(x):
        bound = session.bind(len(x))
        bound.inputs[0][:] = x
        return bound()

    with ThreadPoolExecutor(4) as pool:
        for x, found in zip(batches, pool.map(run, batches), strict=True):
            assert all(map(np.array_equal, found, session(x)))


def test_another_thread_within_is_an_error(session):
    bound = session.bind(1)
    bound._lock.acquire()
    with pytest.raises(RuntimeError, match=r"in use by another thread: bind\(\) its own"):
        bound()
    bound._lock.release()
    bound()


def test_no_row_cannot_be_bound(session):
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        session.bind(0)
