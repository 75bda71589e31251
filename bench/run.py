"""One case after another: every provider is checked, and the right ones are timed together."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fused_loss.bench.cases import Case, Phase
from fused_loss.bench.footprint import Footprint, footprint
from fused_loss.bench.kinds import kind_of
from fused_loss.bench.measure import Neighbours, Plan, Timing, alternate, first_call, settle
from fused_loss.bench.models import ModelCase
from fused_loss.bench.programs import Program, Provider
from fused_loss.bench.verify import Errors

# What became of a provider on a case. Only "ok" has a time.
OK, WRONG, FAILED, UNSUPPORTED = "ok", "wrong", "failed", "unsupported"
CROWD = 0.2  # cores beyond those there are
CHECK_SEED = 1_000_000  # the check draws other inputs than the clock


@dataclass
class Row:
    """A provider on a case in a phase."""

    provider: Provider
    status: str = OK
    reason: str | None = None  # why the status is not "ok"
    errors: Errors | None = None  # against float64, by output
    allowed: Errors | None = None
    first_call: float | None = None  # seconds, compilation included
    footprint: Footprint | None = None
    timing: Timing | None = None

    @property
    def disgrace(self) -> bool:
        """Whether this package fails where it claims to be right."""
        return self.provider.ours and self.status in (WRONG, FAILED)


@dataclass
class Record:
    """All providers on a case in a phase, measured in one run."""

    case: Case | ModelCase
    phase: Phase
    rows: list[Row]
    input_sets: int
    neighbours: float | None = None  # cores that other processes used meanwhile, where known

    @property
    def threads(self) -> int:
        """The CPU threads that each provider may use."""
        return self.phase.threads or torch.get_num_threads()

    @property
    def crowded(self) -> bool:
        """Whether this process and others wanted more CPU than there is: distrust its wall time."""
        wall = any(row.timing and row.timing.clock == "wall" for row in self.rows)
        wanted = self.threads + (self.neighbours or 0.0)
        return wall and wanted > (os.cpu_count() or 1) + CROWD

    def median(self, provider: str) -> float | None:
        """Seconds a call, or None where the provider was not timed here."""
        return next(
            (r.timing.median for r in self.rows if r.provider.name == provider and r.timing), None
        )

    def ratio(self, row: Row, provider: str) -> float | None:
        """The row's time as a multiple of another provider's, of the same run."""
        other = self.median(provider)
        return row.timing.median / other if row.timing and other else None

    def loss_share(self, row: Row) -> float | None:
        """The part of a training step that the model alone does not take, in [0, 1]."""
        model = self.ratio(row, "model-alone")
        return None if model is None or model == 0 else max(0.0, 1 - 1 / model)

    def peak_logits(self, row: Row) -> float | None:
        """The most memory a call held beyond its inputs, in units of the logits."""
        unit = self.case.logits_bytes
        return row.footprint.peak_bytes / unit if row.footprint and unit else None

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: seconds, bytes, and ratios to eager and copy."""
        return {
            "case": self.case.as_json(),
            "phase": self.phase.value,
            "threads": self.threads,
            "input_sets": self.input_sets,
            "other_processes_cores": self.neighbours,
            "crowded": self.crowded,
            "providers": [self._row(row) for row in self.rows],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "name": row.provider.name,
            "status": row.status,
            "reason": row.reason,
            "errors": row.errors and {k: e._asdict() for k, e in row.errors.items()},
            "allowed": row.allowed and {k: e._asdict() for k, e in row.allowed.items()},
            "first_call_s": row.first_call,
        }
        if row.footprint:
            entry |= asdict(row.footprint)
            entry["peak_logits"] = self.peak_logits(row)
        if row.timing:
            timing = row.timing
            entry |= {
                "clock": timing.clock,
                "calls_per_sample": timing.calls,
                "samples_s": [float(f"{second:.4g}") for second in timing.seconds],
                "median_s": timing.median,
                "p10_s": timing.quantile(0.1),
                "p90_s": timing.quantile(0.9),
                "spread": timing.spread,
                "wall_median_s": timing.wall_median,
                "bytes_per_s": self.case.bytes_moved(self.phase) / timing.median,
                "ratio_to_eager": self.ratio(row, "eager"),
                "ratio_to_copy": self.ratio(row, "copy"),
                "loss_share": self.loss_share(row),
            }
        return entry


def chosen(case: Case | ModelCase, phases: Sequence[Phase] | None) -> list[Phase]:
    """Those of a case's phases that are to be measured; None: all."""
    return [phase for phase in case.phases if phases is None or phase in phases]


def run_case(
    case: Case | ModelCase,
    providers: Sequence[Provider],
    device: torch.device,
    plan: Plan,
    progress: Callable[[float, str], Any] = lambda share, doing: None,
    phases: Sequence[Phase] | None = None,
) -> Iterator[Record]:
    """Check every provider on a case, then time those that are right, one phase after another.

    Args:
        case: What to compute.
        providers: Those available on the device.
        device: Where.
        plan: How long, a phase.
        progress: Called with the share done, in [0, 1], and what comes next.
        phases: Some of the case's; None: all of them.

    Yields:
        A record a phase.
    """
    torch.compiler.reset()  # a compiler that remembers other shapes would generalise, or give up
    bench = _CaseBench(case, device, plan)
    measured = chosen(case, phases)
    for done, phase in enumerate(measured):

        def tell(share: float, doing: str, done: int = done) -> None:
            progress((done + share) / len(measured), doing)

        fitting = [p for p in providers if phase in p.phases and p.fits(case)]
        with threads_of(phase):
            record = bench.record(phase, fitting, tell)
        yield record


@contextmanager
def threads_of(phase: Phase) -> Iterator[None]:
    """PyTorch on as many CPU threads as the phase is about."""
    before = torch.get_num_threads()
    torch.set_num_threads(phase.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _CaseBench:
    """A case on a device, with what its phases share: compiled providers and their failures."""

    def __init__(self, case: Case | ModelCase, device: torch.device, plan: Plan) -> None:
        self.case, self.device, self.plan, self.kind = case, device, plan, kind_of(case)
        self.prepared: dict[str, Callable[[Phase], Program]] = {}
        self.rows: dict[tuple[str, Phase], Row] = {}

    def record(
        self, phase: Phase, providers: Sequence[Provider], tell: Callable[[float, str], Any]
    ) -> Record:
        """Check and time the providers in one phase."""
        rows, programs = [], {}
        fresh = self.case.make(self.device, CHECK_SEED)
        of_eager = {} if phase is Phase.STEP else self._eager_errors(phase, fresh)
        for done, provider in enumerate(providers):
            tell(0.5 * done / len(providers), f"check {provider.name}")
            row, program = self._check(phase, provider, fresh, of_eager)
            self.rows[provider.name, phase] = row
            rows.append(row)
            if program is not None:
                programs[provider.name] = program
        del fresh
        _release(self.device)
        tell(0.5, "time")
        count = self.case.input_sets(self.device)
        sets = [self.case.make(self.device, seed) for seed in range(count)]
        options = {"before": settle} if phase.threads else {}
        with Neighbours() as neighbours:
            timings = alternate(
                programs,
                sets,
                self.device,
                self.plan,
                lambda share: tell(0.5 + 0.5 * share, "time"),
                **options,
            )
        for row in rows:
            row.timing = timings.get(row.provider.name)
        return Record(self.case, phase, rows, count, neighbours.cores)

    def _check(
        self, phase: Phase, provider: Provider, inputs: Any, of_eager: Errors
    ) -> tuple[Row, Program | None]:
        """The provider's row, and its program where it may be timed."""
        row = Row(provider)
        if phase is Phase.STEP and provider.computes:
            alone = self._alone(provider, inputs)
            if alone.status != OK:
                row.status, row.reason = alone.status, alone.reason
                return row, None
        if provider.overwrites:
            inputs = self.case.make(self.device, CHECK_SEED)
        try:
            program = self._program(provider, phase)
            outputs, row.first_call = first_call(program, inputs, self.device)
            if provider.computes and phase is not Phase.STEP:
                if provider.overwrites:
                    inputs = self.case.make(self.device, CHECK_SEED)
                row.errors, row.allowed, row.reason = self.kind.verdict(
                    self.case, phase, inputs, outputs, of_eager
                )
            del outputs
            if self.kind.profiled:
                row.footprint = footprint(program, inputs, self.device)
        except NotImplementedError as refusal:
            row.status, row.reason = UNSUPPORTED, str(refusal)
            return row, None
        except Exception as error:  # whatever a peer raises, the others are still measured
            first_line = (str(error).strip().splitlines() or [""])[0]
            row.status, row.reason = FAILED, f"{type(error).__name__}: {first_line}"
            return row, None
        if row.reason:
            row.status = WRONG
            return row, None
        return row, program

    def _alone(self, provider: Provider, inputs: Any) -> Row:
        """Its row in `Phase.TRAINING`, checked now where that phase is not part of the run."""
        key = provider.name, Phase.TRAINING
        if key not in self.rows:
            of_eager = self._eager_errors(Phase.TRAINING, inputs)
            self.rows[key], _ = self._check(Phase.TRAINING, provider, inputs, of_eager)
        return self.rows[key]

    def _eager_errors(self, phase: Phase, inputs: Any) -> Errors:
        return self.kind.eager_errors(self.case, phase, inputs, self.device)

    def _program(self, provider: Provider, phase: Phase) -> Program:
        if provider.name not in self.prepared:
            self.prepared[provider.name] = provider.programs(self.case, self.device)
        return self.prepared[provider.name](phase)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
