from _export import mlp_bytes, rows

from fused_loss.export import speed
from fused_loss.export.signature import Signature
from fused_loss.export.speed import milliseconds


def test_every_file_is_timed_at_every_batch_size_in_turns(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp_bytes())
    order = []
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(speed, "run", lambda session, x, _: order.append((id(session), len(x[0]))))
    found = milliseconds({"a": path, "b": path}, (rows(3),), Signature(), (1, 7))
    assert {batch: set(times) for batch, times in found.items()} == {
        "1": {"a", "b"},
        "7": {"a", "b"},
    }
    assert all(time >= 0 for times in found.values() for time in times.values())
    sizes = [size for _, size in order]
    assert sizes == sorted(sizes)
    assert set(sizes) == {1, 7}
    assert all(order[i][0] != order[i + 1][0] for i in range(0, len(order), 2))
