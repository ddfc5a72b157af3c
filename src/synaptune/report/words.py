"""What a report says in words: the verdict, what stands behind it, and what to do next; plain text, never more than the numbers say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from synaptune.analysis.results import Ablated, Claim, Comparison, Evidence
from synaptune.parameters import constant
from synaptune.report import tables
from synaptune.report.tables import objective, positions

EDGE = constant("report.edge", 0.05, meaning="distance from a range's end that counts as at it", source="chosen: a twentieth of the range")
LEVEL = constant("report.level", 0.05, unit="probability", meaning="adjusted p below which a difference is told from zero", source="chosen")
FEW = constant("report.few", 10.0, unit="evaluation", meaning="per parameter, below which a search is short", source="chosen: CMA's habit")
LATE = constant("report.late", 0.9, meaning="share of a search whose rest should bring little", source="chosen")
SLIGHT = constant("report.slight", 0.05, meaning="share of a search's gain that counts as little", source="chosen")
FRAGILE = constant("report.fragile", 0.1, meaning="failed share of the trials that deserves a look", source="chosen")
_NAMED = 6  # parameters named in a sentence

Tone = Literal["good", "unsure", "bad", "none"]


class Finding(NamedTuple):
    """A sentence or two under a heading of a few words."""

    title: str
    text: str


class Verdict(NamedTuple):
    """The headline, how it is meant (`good`, `unsure`, `bad`, or `none` without a claim), and what stands behind it."""

    headline: str
    tone: Tone
    findings: Sequence[Finding]


def label(name: str, names: Sequence[str]) -> str:
    """The last part of a parameter's name where no other of the names ends alike, else the whole."""
    last = name.rsplit(".", 1)[-1]
    return name if sum(other.rsplit(".", 1)[-1] == last for other in names) > 1 else last


def running(evidence: Evidence) -> bool:
    """Whether trials, of any phase, have begun and not ended: the study goes on, or was killed."""
    return evidence.began is not None and evidence.ended is None


def verdict(evidence: Evidence) -> Verdict:
    """The verdict of a study."""
    findings: list[Finding] = []
    claim = evidence.claim
    if claim is None:
        headline, tone = _unclaimed(evidence), "none"
    else:
        headline, tone = claimed(claim.gain)
        findings.append(Finding(f"Decision: {claim.decision}", f"{_sentence(claim.reason)}"))
    findings += _carried(evidence)
    findings += _luck(evidence)
    if claim is None or not evidence.ablation:
        findings += _searched(evidence)
    return Verdict(headline, tone, findings)


def claimed(gain: Comparison) -> tuple[str, Tone]:
    """A validated gain [%] in a sentence."""
    interval, seeds = f"95 % interval {gain.low:.1f} to {gain.high:.1f}", f"{gain.count} fresh seeds"
    if gain.low > 0.0:
        return f"Tuning lowers test perplexity by {gain.mean:.1f} % ({interval}) on {seeds}.", "good"
    if gain.high < 0.0:
        return (
            f"The tuned parameters are worse: perplexity rises by {-gain.mean:.1f} % ({-gain.high:.1f} to {-gain.low:.1f}) on {seeds}.",
            "bad",
        )
    return f"No gain is told from zero: test perplexity improves by {gain.mean:.1f} % ({interval}) on {seeds}.", "unsure"


def _unclaimed(evidence: Evidence) -> str:
    if not evidence.trials:
        return "No claim: no trial has begun."
    if evidence.best is None:
        failed = sum(trial.state == "failed" for trial in evidence.trials)
        return f"No claim: no trial is complete ({failed} failed, {len(evidence.trials) - failed} not ended)."
    return "No claim: nothing has been validated on fresh seeds."


def _carried(evidence: Evidence) -> Iterator[Finding]:
    """What the ablation says of each parameter."""
    known = [(entry, entry.reverted) for entry in evidence.ablation if entry.reverted is not None]
    if not known:
        return
    known.sort(key=lambda pair: -pair[1].mean)
    good = [(entry, found) for entry, found in known if _told(entry) and found.mean > 0.0]
    harmful = [(entry, found) for entry, found in known if _told(entry) and found.mean < 0.0]
    if good:
        parts = [f"{label(entry.name, evidence.names)} {gain(found)}" for entry, found in good[:_NAMED]]
        more = f" and {len(good) - _NAMED} more" if len(good) > _NAMED else ""
        text = f"Put back to its default alone, each costs, in % of test perplexity: {', '.join(parts)}{more}."
    else:
        text = "No single parameter, put back to its default, makes a difference that is told from zero."
    yield Finding("What carries it", text)
    open_ = [label(entry.name, evidence.names) for entry, _ in known if not _told(entry)]
    if open_:
        count = known[0][1].count
        yield Finding("Not told from zero", f"With {count} paired seeds and Holm's correction: {some(open_)}.")
    if harmful:
        parts = [f"{label(entry.name, evidence.names)} {gain(found)}" for entry, found in harmful[:_NAMED]]
        yield Finding("Better at its default", f"{', '.join(parts)}: the tuned value costs.")


def _told(entry: Ablated) -> bool:
    return entry.adjusted_reverted is not None and entry.adjusted_reverted < LEVEL


def gain(found: Comparison) -> str:
    """A gain with its interval: `8.1 (6.2 to 10.0)`."""
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def _luck(evidence: Evidence) -> Iterator[Finding]:
    luck = evidence.luck
    if luck is None:
        return
    text = f"The gain is {luck.search:.3f} nats/token on the search's own seed, {luck.fresh:.3f} on fresh seeds"
    text += f" and {luck.test:.3f} on the test split"
    if luck.search > 0.0:
        lost = 100.0 * (1.0 - luck.fresh / luck.search)
        text += f": {lost:.0f} % of it did not survive fresh seeds" if lost >= 0.5 else ": all of it survived fresh seeds"
    yield Finding("Winner's luck", text + ".")


def _searched(evidence: Evidence) -> Iterator[Finding]:
    """What the search alone says."""
    best, course = evidence.best, evidence.course
    if best is not None and best.objective is not None and course is not None and evidence.claim is None:
        ended = len(course.evaluation)
        text = f"The best of {ended} evaluation{'s' if ended != 1 else ''} has objective {best.objective:.4f} (trial {best.number})"
        first = next((loss for loss in course.best if loss is not None), None)
        if ended > 1 and first is not None:
            text += f"; the first complete one had {objective(evidence, first):.4f}. A best of many on one seed overstates what it gained"
        yield Finding("In the search", text + ".")
    if evidence.effects:
        found = [label(entry.name, evidence.names) for entry in sorted(evidence.effects, key=lambda entry: entry.p) if entry.found]
        text = (
            f"The search's own trials show that the loss depends on {some(found)}"
            if found
            else "The search's own trials show no effect of any parameter"
        )
        yield Finding("Effects", f"{text} (Holm-adjusted, {len(evidence.effects)} tests).")
    elif evidence.effects_note and evidence.trials:
        yield Finding("Effects", f"Not tested: {_sentence(evidence.effects_note)}")


def advice(evidence: Evidence) -> list[Finding]:
    """What to do next, the most pressing first; of a study that still runs only what concerns its running."""
    if running(evidence):
        return list(_of_state(evidence))
    return [*_of_state(evidence), *_of_claim(evidence), *_of_search(evidence), *_of_parameters(evidence)]


def _of_state(evidence: Evidence) -> Iterator[Finding]:
    ended = sum(trial.state != "running" for trial in evidence.trials)
    planned = tables.budget(evidence)
    if running(evidence):
        counted = f"{ended} of {planned} planned evaluations have ended." if planned is not None else "Trials have begun and not ended."
        yield Finding("Let it end", f"{counted} If the study was interrupted, the same command goes on.")
    elif planned is not None and ended < planned:
        text = f"{ended} of {planned} planned evaluations have ended. Unless a stopping rule ended it, the same command goes on."
        yield Finding("Go on with the search", text)
    failed = sum(trial.state == "failed" for trial in evidence.trials)
    if ended and failed / ended > FRAGILE:
        yield Finding(
            "Look at the failures", f"{failed} of {ended} trials failed; every one is lost to the search. Their reasons are below."
        )


def _of_claim(evidence: Evidence) -> Iterator[Finding]:
    claim = evidence.claim
    if claim is None:
        if evidence.best is not None:
            yield Finding(
                "Validate", "Run the defaults and the best on fresh seeds: without them nothing is claimed. `make sweep-phase1` does it."
            )
        return
    yield from _seeds(claim)
    if not evidence.ablation:
        yield Finding("Take the optimum apart", "`make ablation` says which parameters carry the gain.")
    harmful = [entry for entry in evidence.ablation if _told(entry) and entry.reverted is not None and entry.reverted.mean < 0.0]
    if harmful:
        names = some([label(entry.name, evidence.names) for entry in harmful])
        yield Finding("Put back", f"{names}: the default is better. Validate the optimum again without the change.")
    if claim.decision == "proceed":
        yield Finding(
            "Go on", "The gate is passed: `make sweep-phase2` searches all parameters from here, `make transfer` asks a larger scale."
        )


def _seeds(claim: Claim) -> Iterator[Finding]:
    """More seeds where the interval reaches zero: its width falls with the root of their number."""
    found = claim.gain
    half = (found.high - found.low) / 2.0
    if found.low <= 0.0 < found.mean:
        needed = math.ceil(found.count * (half / found.mean) ** 2) + 1
        text = f"The interval reaches zero. If the true gain is the {found.mean:.1f} % seen, about {needed} seeds in all would tell it"
        yield Finding("More seeds", text + (", more than it is likely worth." if needed > 10 * found.count else "."))


def _of_search(evidence: Evidence) -> Iterator[Finding]:
    ended = sum(trial.state != "running" for trial in evidence.trials)
    if not ended or not evidence.names:
        return
    if ended < FEW * len(evidence.names):
        text = f"{ended} evaluations for {len(evidence.names)} parameters is few; {FEW:g} for each is a fair beginning."
        yield Finding("Search longer", text)
    elif evidence.course is not None:
        late = _late_gain(evidence.course.best)
        if late is not None and late >= SLIGHT:
            text = f"The last {1.0 - LATE:.0%} of the evaluations brought {late:.0%} of the search's gain: it has not come to rest."
            yield Finding("Search longer", text)
    noise = evidence.noise
    if (
        noise is not None
        and evidence.luck is not None
        and noise.difference is not None
        and noise.candidates is not None
        and noise.difference > noise.candidates / 2.0
    ):
        text = (
            f"Seeds move a difference by {noise.difference:.3g} nats/token, candidates differ by {noise.candidates:.3g}: "
            "ranks are mostly luck. Use `search.seeds=2` or more, or longer runs."
        )
        yield Finding("Less noise", text)


def _late_gain(best: Sequence[float | None]) -> float | None:
    """The share of the whole gain that the last part of a search brought; null where nothing was gained."""
    losses = [loss for loss in best if loss is not None]
    if not losses or losses[0] <= losses[-1]:
        return None
    return (losses[int(LATE * (len(losses) - 1))] - losses[-1]) / (losses[0] - losses[-1])


def _of_parameters(evidence: Evidence) -> Iterator[Finding]:
    place = {name: unit for name, unit in positions(evidence).items() if name in evidence.names}
    moved = {name for name in place if evidence.best is not None and evidence.best.values[name] != evidence.start.get(name)}
    if evidence.effects:  # one without an effect ends at an edge as easily as anywhere
        moved &= {entry.name for entry in evidence.effects if entry.found}
    for side, wanted in (
        ("lower", [name for name in place if place[name] < EDGE]),
        ("upper", [name for name in place if place[name] > 1.0 - EDGE]),
    ):
        names = [label(name, evidence.names) for name in wanted if name in moved]
        if names:
            text = f"{some(names)}: the best lies at the {side} end of the range, so a better value may lie beyond."
            yield Finding("Widen the range", text)
    idle = [label(entry.name, evidence.names) for entry in evidence.effects if not entry.found and not _carries(evidence, entry.name)]
    ended = sum(trial.state != "running" for trial in evidence.trials)
    if idle and ended >= FEW * len(evidence.names) and any(entry.found for entry in evidence.effects):
        text = f"{some(idle)}: no effect was found. Fixing them at their defaults leaves the budget to the others (`synaptune refine`)."
        yield Finding("Fix", text)


def _carries(evidence: Evidence, name: str) -> bool:
    return any(entry.name == name and _told(entry) for entry in evidence.ablation)


def some(names: Sequence[str]) -> str:
    """Names in a sentence, the first ones of many."""
    if len(names) > _NAMED + 2:
        return ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more"
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _sentence(text: str) -> str:
    """A text that begins like a sentence and ends like one."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
