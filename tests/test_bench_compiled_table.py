from fused_loss.bench.compiled_table import markdown

ROW = {
    "family": "rows, 1024 classes, bf16",
    "kernel": "reduce_kernel",
    "programs": 2080,
    "tile": {"rows": 2, "columns": 1024, "warps": 4},
    "registers": 128,
    "shared": 32,
    "spilled": 0,
    "unforced": 0,
    "resident": 4,
    "logits_read_bits": {"128": 2, "16": 2},
    "gradient_written_bits": {"128": 2},
    "outputs_read_bits": {"128": 4},
    "instructions": {"row": 560, "blocks": []},
    "warp_instructions_a_row": 1120.0,
    "instructions_a_logit": 35.0,
    "bytes_a_logit": 4.0,
    "instructions_an_element": 8.5,
}


def shown(*rows: dict) -> str:
    environment = {"packages": {"triton": "3.6.0"}, "cuda": None, "python": "3.11", "commit": "abc"}
    return markdown(
        {
            "command": "fused-loss bench compiled",
            "started": "2026-01-02T03:04:05+00:00",
            "environment": environment,
            "target": "sm_90",
            "rows": list(rows),
        }
    )


def test_a_line_a_launch():
    text = shown(ROW)
    line = (
        "| rows, 1024 classes, bf16 | reduce\\_kernel | 2,080 | 2 × 1024, 4 warps | 128 | 0 | 4 "
        "| 128 × 2, 16 × 2 | 128 × 2 | 1,120 | 35.0 | 4.0 | 8.8 | 128 × 4 | 8.5 |"
    )
    assert line in text
    assert "compiled, not run" in text.splitlines()[0]
    assert "triton 3.6.0" in text
    assert "commit abc" in text
    assert text.endswith("0 of 1 launches spill for want of registers.\n")


def test_what_there_is_not_and_what_spills():
    row = ROW | {"gradient_written_bits": {}, "instructions_a_logit": 0.0, "spilled": 8}
    text = shown(row | {"unforced": 16}, ROW)
    assert "| 128 | 8 (16) | 4 | 128 × 2, 16 × 2 | – | 1,120 | – | 4.0 | – |" in text
    assert text.endswith("1 of 2 launches spill for want of registers.\n")
