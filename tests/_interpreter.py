"""Triton's interpreter, without most of the time that it spends on itself, and on any NumPy."""

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

    Triton 3.6 takes the number out of an array of one element in a way that NumPy 2.4 refuses.
    """
    patch = interpreter._patch_lang
    patch_tensor = interpreter._patch_lang_tensor

    def once(function: Any) -> Any:
        found = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if any(tl.core.is_builtin(language.load) for language in found):
            return patch(function)
        return interpreter._LangPatchScope()

    def with_numbers(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang = once
    interpreter._patch_lang_tensor = with_numbers
