"""Triton's interpreter, without most of the time that it spends on itself."""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def patch_the_language_once() -> None:
    """Let a device function run in the language as it has been patched for its kernel.

    The interpreter patches every function of `triton.language` when a kernel starts, and again at
    each call of a device function, to the same effect. That is most of its time.
    """
    patch = interpreter._patch_lang

    def once(function: Any) -> Any:
        found = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if any(tl.core.is_builtin(language.load) for language in found):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = once
