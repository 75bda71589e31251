"""The guard: no test may launch a kernel variant that the ahead-of-time tests do not know.

And hypothesis' profile "thorough", which draws 2,000 calls a backend, other ones each time:

    pytest tests/test_kernels_properties.py -k any_call --hypothesis-profile thorough
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("thorough", max_examples=2000, print_blob=True)


@pytest.fixture(autouse=True, scope="session")
def _collected_once() -> Iterator[None]:
    """Thousands of tests and what they import stay: no garbage collection has to walk them.

    A benchmark collects before each measurement.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _known_variants(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look at every launch of a test, where Triton has been imported before it; see `_interpreter`.

    Tests with the fixture `shrunken` or `tuned` take other tiles than the launch table's and are
    left alone.
    """
    launcher: Any = sys.modules.get("fused_loss.kernels.triton_launch")
    if launcher is not None and launcher.interpreted():
        from _interpreter import patch_the_language_once

        patch_the_language_once()
    if launcher is None or {"shrunken", "tuned"} & set(request.fixturenames):
        yield
        return
    from _variants import known

    from fused_loss.bench.ahead import variant

    original = launcher.launch

    def guarded(call: Any, arguments: dict[str, Any]) -> None:
        key = variant(call.kernel, call.warps, arguments)
        if not known(key):
            pytest.fail(f"a kernel variant that no test compiles for a GPU: {key}")
        original(call, arguments)

    launcher.launch = guarded
    yield
    launcher.launch = original
