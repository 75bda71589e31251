"""The figures in a README, rendered from results files so that they cannot drift.

    python -m fused_loss.bench.readme README.md [RESULTS] [--check]

A section lies between two markers, and the first names its file, relative to the README:

    <!-- bench bench/results/a-machine/results.json -->
    <!-- /bench -->

RESULTS is for a section whose marker names no file yet, `<!-- bench -->`: it names RESULTS from
then on. `--check` writes nothing, and prints a difference and exits 1 where the README is not what
its files say. Exit 2: no such section, or a file that cannot be read.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fused_loss.bench.cases import Phase
from fused_loss.bench.slower import INFERENCE, where_slower
from fused_loss.bench.stored import (
    AHEAD,
    COMPILED,
    EAGER,
    Record,
    ResultsError,
    Row,
    fastest,
    in_phase,
    in_place,
    load,
    ours,
    ratio,
    timed,
)
from fused_loss.bench.wording import (
    Results,
    crowded,
    date,
    machine,
    or_dash,
    table,
    times,
    unmeasured,
    versions,
)

SECTION = re.compile(r"<!-- bench(?: (?P<file>\S+))? -->.*?<!-- /bench -->", re.DOTALL)
MARKERS = "<!-- bench path/to/results.json --> and <!-- /bench -->"
PLOTS = {"speedup.png": "Speed-up by case", "inference.png": "Speed-up over eager in inference"}
LOSS_LEGEND = """\
Forward and backward together: PyTorch's time divided by ours, so above 1 ours is faster; ≈ where
the spread (first to last decile of the rounds) says neither. In place: with `inplace_gradient`,
where the gradient takes over the logits' memory. Memory is the most that a call held beyond its
inputs, in units of the logits."""
MODEL_LEGEND = """\
Inference: PyTorch's time divided by that of the exported file in onnxruntime, at its fastest of
three (not optimised, optimised, and with IO binding); ≈ where the spread says neither."""


def main(argv: Sequence[str] | None = None) -> int:
    """Render, or check.

    Returns:
        0; 1 where `--check` finds a difference; 2 where there is nothing to render or to read.
    """
    parser = argparse.ArgumentParser("python -m fused_loss.bench.readme", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("readme", type=Path)
    parser.add_argument("results", type=Path, nargs="?", help="for a marker that names no file")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    args = parser.parse_args(argv)
    try:
        before = args.readme.read_text(encoding="utf-8")
        after = render(before, args.readme.parent, args.results)
    except (OSError, ResultsError) as error:
        print(f"{args.readme}: {error}", file=sys.stderr)
        return 2
    if args.check:
        old, new = (text.splitlines(keepends=True) for text in (before, after))
        sys.stdout.writelines(difflib.unified_diff(old, new, str(args.readme), "rendered"))
        return int(before != after)
    args.readme.write_text(after, encoding="utf-8")
    return 0


def render(text: str, folder: Path, results: Path | None = None) -> str:
    """A README's text with every section of figures made anew.

    Args:
        text: The README's.
        folder: The one it lies in.
        results: The file for a marker that names none.

    Raises:
        ResultsError: No section, one without a file, or a file that cannot be read.
    """

    def made(match: re.Match[str]) -> str:
        if match["file"] is None and results is None:
            raise ResultsError("a marker <!-- bench --> names no file: name one after the README")
        path = folder / match["file"] if match["file"] else Path(str(results))
        name = match["file"] or Path(os.path.relpath(_file(path), folder)).as_posix()
        body = section(load(path), _file(path), folder)
        return f"<!-- bench {name} -->\n\n{body}\n\n<!-- /bench -->"

    rendered, count = SECTION.subn(made, text)
    if not count:
        raise ResultsError(f"there is no section between {MARKERS}")
    if results is not None and not _named(rendered, folder, results):
        raise ResultsError(f"no marker names {results}, and none is without a name")
    return rendered


def _file(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path


def _named(text: str, folder: Path, results: Path) -> bool:
    files = (folder / match["file"] for match in SECTION.finditer(text))
    return _file(results).resolve() in {file.resolve() for file in files}


def section(results: Results, path: Path, folder: Path) -> str:
    """What stands between the markers.

    Args:
        results: The file's.
        path: Of the file; its report and plot are linked where they lie beside it.
        folder: The README's.
    """
    threads = results["environment"]["threads"]["torch"]
    commit = (results["environment"]["commit"] or "unknown")[:12]
    source = (
        f"{machine(results)}; {threads} CPU threads; {versions(results)}; commit {commit}; "
        f"{date(results)}; `{results['command']}`"
    )
    parts = [
        *_losses(results),
        *_models(results),
        *(_image(path.parent / plot, text, folder) for plot, text in PLOTS.items()),
        f"### Where it is slower\n\n{where_slower(results)}",
        f"Measured on {source}.{_report(path.parent / 'report.md', folder)}",
        None if results["complete"] else "The run was cut short.",
        unmeasured(results),
        crowded(results),
    ]
    return "\n\n".join(filter(None, parts))


def _losses(results: Results) -> list[str]:
    """A table of the losses and its legend, where there are any."""
    records = [r for r in in_phase(results, Phase.TRAINING.value) if timed(r)]
    head = (
        "case",
        "over eager",
        "over torch.compile",
        "in place, over eager",
        "memory, ours",
        "memory, in place",
        "memory, eager",
        "memory, compiled",
    )
    return [table(head, list(map(_loss, records)), "lrrrrrrr"), LOSS_LEGEND] if records else []


def _models(results: Results) -> list[str]:
    """The same of the models."""
    records = [r for r in results["records"] if r["phase"] in INFERENCE and timed(r)]
    head = ("case", "threads", "over eager", "over torch.compile", "over compiled ahead of time")
    return [table(head, list(map(_model, records)), "lrrrr"), MODEL_LEGEND] if records else []


def _model(record: Record) -> tuple[str, ...]:
    rivals = (fastest(record, names) for names in (EAGER, COMPILED, AHEAD))
    speedups = (_times(rival, ours(record)) for rival in rivals)
    return record["case"]["name"], str(record["threads"]), *speedups


def _loss(record: Record) -> tuple[str, ...]:
    mine, inside = ours(record), in_place(record)
    eager, compiled = (fastest(record, names) for names in (EAGER, COMPILED))
    speedups = (eager, mine), (compiled, mine), (eager, inside)
    memory = (row and row.get("peak_logits") for row in (mine, inside, eager, compiled))
    return (
        record["case"]["name"],
        *(_times(*pair) for pair in speedups),
        *(or_dash(logits, "{:.2f}") for logits in memory),
    )


def _times(rival: Row | None, mine: Row | None) -> str:
    if not rival or not mine:
        return "–"
    compared = ratio(rival, mine)
    return "≈ " * compared.unclear + times(compared.value)


def _image(path: Path, text: str, folder: Path) -> str | None:
    return f"![{text}]({_link(path, folder)})" if path.is_file() else None


def _report(path: Path, folder: Path) -> str:
    return f" [Every figure]({_link(path, folder)})." if path.is_file() else ""


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


if __name__ == "__main__":
    sys.exit(main())
