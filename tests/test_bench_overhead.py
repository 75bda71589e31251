import numpy as np
from _export import mlp_bytes

from fused_loss.bench.overhead import BARE, main, programs, samples, table


def test_every_program_gives_the_same_heads(tmp_path):
    (tmp_path / "m.onnx").write_bytes(mlp_bytes())
    for batch in (1, 5):
        bare, *others = (program() for program in programs(tmp_path / "m.onnx", batch).values())
        for heads in others:
            assert all(map(np.array_equal, heads, bare))
        assert len(bare[0]) == batch


def test_programs_take_turns_after_a_warm_up():
    order = []
    chosen = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    taken = samples(chosen, rounds=3, calls=2)
    assert order == ["a", "a", "b", "b"] * 4
    assert {name: len(each) for name, each in taken.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_over_the_rounds():
    taken = {BARE: [1e-6, 2e-6, 4e-6], "slow": [2e-6, 3e-6, 4e-6]}
    lines = [line.split() for line in table(taken).splitlines()]
    assert [line[-3:] for line in lines] == [["2.0", "us", "1.000"], ["3.0", "us", "1.500"]]


def test_the_command(capsys):
    assert main(["--width", "4", "--rounds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["bare", "OnnxDualHead", "OnnxDualHead.bind"]
