"""A model file on its way: written beside its target, verified, made smaller, finished."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fused_loss.export.check import (
    Expected,
    accepted,
    blank_report,
    check_file,
    expected,
    run,
)
from fused_loss.export.errors import OnnxExportError, require
from fused_loss.export.inputs import Case, data_cases
from fused_loss.export.metadata import with_metadata
from fused_loss.export.options import Options
from fused_loss.export.quantize import (
    Request,
    agreement_problem,
    int8_rules,
    label_agreement,
    quantized,
)
from fused_loss.export.reference import Reference
from fused_loss.export.report import Quantization, VerificationReport
from fused_loss.export.session import open_session
from fused_loss.export.signature import Tensors
from fused_loss.export.speed import milliseconds
from fused_loss.export.structure import read_structure
from fused_loss.export.tolerance import Rule
from fused_loss.export.weights import Outside, sha256


class Draft:
    """The file at `path`, which is not yet where it is wanted.

    Args:
        path: Where it is written.
        proto: The model.
        reference: What it is held to.
        options: What it does beside the model.
        rules: Output to what is allowed.
        weights: Its file of weights, if it has one.
        name: What reports call it.
        seed: Of the random inputs.
    """

    def __init__(
        self,
        path: Path,
        proto: Any,
        reference: Reference,
        options: Options,
        rules: Mapping[str, Rule],
        weights: Outside,
        name: str,
        seed: int,
    ) -> None:
        self.path, self._proto, self._reference = path, proto, reference
        self._options, self._rules, self._weights = options, rules, weights
        self._name, self._seed = name, seed
        self.report: VerificationReport | None = None

    def verify(self, cases: Iterable[Case], source: str) -> None:
        """Hold the file to the model.

        Raises:
            OnnxVerificationError: They differ.
        """
        exact = replace(self._options, quantize=None)
        wanted = expected(self._reference, cases)
        if self._options.quantize is None:
            self._reference.release()
        self._write(exact)
        rules = {} if self._options.quantize else self._rules  # those asked for are int8's
        self.report = accepted(self._check(wanted, rules, source))

    def quantize(self, asked: Request, data: Tensors | None, sizes: Sequence[int]) -> None:
        """Put the int8 file in the place of the float32 one, and hold it to its own limits.

        Raises:
            OnnxExportError: The model cannot be quantised.
            OnnxVerificationError: The labels agree too rarely, or an output is too far off.
        """
        rows = data or asked.calibration or self._reference.example
        source = "data" if data else "calibration" if asked.calibration else "example"
        wanted = expected(self._reference, data_cases(rows, sizes, self._seed))
        rules = int8_rules(self._rules, self._reference.signature, wanted)
        with tempfile.TemporaryDirectory() as folder:
            exact = Path(folder) / "fp32.onnx"
            shutil.copyfile(self.path, exact)
            self._proto = quantized(self._proto, asked, self._reference.signature)
            self._write(self._options)
            report = self._check(wanted, rules, source)
            if not report.problems:
                report = self._measured(report, asked, wanted, exact, rows)
        self.report = accepted(report)

    def finish(self) -> VerificationReport:
        """Write what was measured into the file's metadata, and nothing else.

        Raises:
            OnnxExportError: The file that was read back is not the one that was verified.
        """
        assert self.report is not None
        verified = self._graph()
        self._write(self._options, self.report)
        if self._graph() != verified:
            raise OnnxExportError(f"{self._name} changed on the disk while it was written")
        open_session(self.path)
        return replace(self.report, sha256=sha256(self.path))

    def _check(
        self, wanted: Sequence[Expected], rules: Mapping[str, Rule], source: str
    ) -> VerificationReport:
        signature = self._reference.signature
        blank = blank_report(
            self.path,
            read_structure(self.path),
            signature,
            name=self._name,
            seed=self._seed,
            source=source,
        )
        return check_file(self.path, blank, signature, wanted, rules, self._reference)

    def _measured(
        self,
        report: VerificationReport,
        asked: Request,
        wanted: Sequence[Expected],
        exact: Path,
        rows: Tensors,
    ) -> VerificationReport:
        """With what int8 costs and gains; labels that agree too rarely are a problem."""
        signature = self._reference.signature
        session = open_session(self.path)
        found = label_agreement(signature, wanted, lambda inputs: run(session, inputs, signature))
        agreement, positions = found or (None, 0)
        problems = report.problems + agreement_problem(found, asked.min_label_agreement)
        files = {"fp32": exact, "int8": self.path}
        measured = Quantization(
            mode=asked.mode,
            label_agreement=agreement,
            min_label_agreement=asked.min_label_agreement,
            positions=positions,
            errors=report.observed_error,
            limits=report.tolerance,
            bytes={name: path.stat().st_size for name, path in files.items()},
            milliseconds=milliseconds(files, rows, signature),
        )
        return replace(report, problems=problems, quantization=measured)

    def _write(self, options: Options, report: VerificationReport | None = None) -> None:
        self.path.write_bytes(
            with_metadata(
                self._proto,
                self._reference.signature,
                options,
                report,
                self._weights.record,
                self.path.parent,
            )
        )

    def _graph(self) -> bytes:
        """What the file on the disk computes."""
        model = require("onnx").load(str(self.path), load_external_data=False)
        return model.graph.SerializeToString(deterministic=True)
