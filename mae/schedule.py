"""A curriculum as a value: which pairing and which mask ratio hold from which epoch on.

Written as `0 shifted_patches 0.75; 40 mixed:video=1,shifted=1; 90 video 0.9`: the finished epochs after which a phase
begins, its pairing, and perhaps the mask ratio at its beginning. Between two ratios the ratio changes in a straight
line. Everything is a function of the epoch or the step alone, so a resumed run continues exactly.
"""

from dataclasses import dataclass

from common.errors import InputError

FORM = "'EPOCH PAIRING [MASK_RATIO]; …', such as '0 shifted_patches 0.75; 40 video 0.9'"


@dataclass(frozen=True)
class Phase:
    """One line of a schedule. begin: finished epochs; mask_ratio: None continues what the others say."""

    begin: int
    pairing: str
    mask_ratio: float | None = None


@dataclass(frozen=True)
class Schedule:
    """Phases in the order of their beginnings, the first at 0. Make it with `parse`."""

    phases: tuple[Phase, ...]

    @staticmethod
    def parse(text: str) -> "Schedule":
        """Read the form at the top of this file. Raises InputError with the phase that cannot be read."""
        phases = tuple(_phase(part, text) for part in text.split(";") if part.strip())
        begins = [phase.begin for phase in phases]
        if not phases or begins[0] != 0 or begins != sorted(set(begins)):
            raise InputError(
                f"schedule {text!r}: its phases begin at {begins or 'nothing'}; expected {FORM}, the first at 0 and "
                "each later than the one before"
            )
        return Schedule(phases)

    def pairing(self, epoch: int) -> str:
        """The pairing of an epoch; epochs are counted from 1, and 0 is taken for the first."""
        return [phase.pairing for phase in self.phases if phase.begin < max(epoch, 1)][-1]

    def mask_ratio(self, progress: float) -> float | None:
        """The mask ratio after so many epochs (a fraction of one too); None where the schedule names none."""
        known = [(phase.begin, phase.mask_ratio) for phase in self.phases if phase.mask_ratio is not None]
        before = [point for point in known if point[0] <= progress]
        after = [point for point in known if point[0] > progress]
        if not before or not after:
            return before[-1][1] if before else (after[0][1] if after else None)
        (start, low), (end, high) = before[-1], after[0]
        return low + (high - low) * (progress - start) / (end - start)


def _phase(part: str, text: str) -> Phase:
    try:
        begin, pairing, *ratio = part.split()
        phase = Phase(int(begin), pairing, *(float(value) for value in ratio))
    except (ValueError, TypeError):
        raise InputError(f"schedule {text!r}: {part.strip()!r} cannot be read; expected {FORM}") from None
    if phase.begin < 0 or (phase.mask_ratio is not None and not 0 <= phase.mask_ratio < 1):
        raise InputError(
            f"schedule {text!r}: {part.strip()!r} must begin at epoch 0 or later, with a mask ratio in [0, 1)"
        )
    return phase
