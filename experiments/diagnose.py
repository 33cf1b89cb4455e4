"""What a run tells beside the policies: where attempts were lost, what one step is worth, who finds the first error,
how far policies have moved from the base model. Nothing here is used to filter or to train.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from int_jax import estimates, modules, proposers, report, rollout
from int_jax import intervention_training as method
from int_jax.domains import Domain
from int_jax.lab import Lab
from int_jax.proposers import likelihood_ratio
from int_jax.rows import GAIN, AttemptRow, DriftRow, EffectRow, GuidedRow, ProposalRow, Stage, id_of
from int_jax.sampler import Sampling
from int_jax.types import Intervention, Trace

CONDITIONS = ("problem", "prefix", "prefix_error", "prefix_intervention")
EXAMPLES = 60  # wrong attempts in the report


INTERVENED = (Stage("attempts"), Stage("proposals"), Stage("guided"))


class Interventions:
    """What a run's interventions came to, beside one another: wrong attempts, their proposals and what became of them.
    Of a lab that has the rows of INTERVENED; nothing is computed that is not there.

    Attributes:
      attempts: rows of all problems. wrong: the attempts at hard ones; proposals, spliced, guided: of each of these, or
        None. spliced has those, too, that are too long to be continued.
    """

    def __init__(self, lab: Lab):
        self.lab = lab
        self.attempts: list[AttemptRow] = lab.rows[Stage("attempts")]
        self.wrong: list[Trace] = method.failures(self.attempts, lab.unsolved)
        self.proposals: list[ProposalRow] = lab.rows[Stage("proposals")]
        spliced = lab.splice(self.wrong, self.proposals)
        guided = {row.id: row for row in lab.rows[Stage("guided")] if lab.fits(row.trace)}
        found = {id_of(trace): trace for trace in spliced}
        self.spliced: list[Trace | None] = [found.get(id_of(trace)) for trace in self.wrong]
        self.guided: list[GuidedRow | None] = [guided.get(id_of(trace)) for trace in self.wrong]

    def kept(self) -> set[tuple]:
        """The ids of what the filter keeps: by gain, as far as that was drawn, or by a right continuation."""
        if self.lab.filter == "gain":
            return {row.id for row in self.lab.rows.get(GAIN, ()) if row.gain > 0}
        return {row.id for row in self.guided if row and row.successes}

    def drop(self, index: int) -> str:
        """Why a wrong attempt was not continued, one of proposers.DROPS, or ""."""
        fits = self.spliced[index] is None or self.guided[index] is not None
        return self.proposals[index].drop or ("" if fits else "too_long")

    def continued(self) -> list[tuple[Trace, Intervention, Trace]]:
        """(wrong attempt, its intervention, the guided attempt) of those that were continued."""
        every = zip(self.wrong, self.proposals, self.spliced, self.guided, strict=True)
        return [
            (trace, row.intervention, spliced)
            for trace, row, spliced, guided in every
            if row.intervention and spliced and guided
        ]

    def funnel(self) -> dict[str, int]:
        """Counts from the wrong attempts to what the filter kept."""
        drops = [self.drop(i) for i in range(len(self.wrong))]
        lost = {name: drops.count(name) for name in proposers.DROPS}
        none = sum(lost[name] for name in ("unparsed", "not_located", "too_long"))
        rows = [row for row in self.guided if row]
        ids = self.kept()
        kept = [row.trace for row in rows if row.id in ids]
        counts = {"proposed": len(self.wrong) - none, **lost, "spliced": len(rows)}
        counts |= {"guided": sum(row.tries for row in rows), "kept": len(kept)}
        counts["problems_kept"] = len({trace.task.id for trace in kept})
        if self.lab.domain.oracle:
            counts["kept_right"] = sum(
                row is not None
                and row.id in ids
                and self.lab.domain.first_error(trace) == proposal.intervention.step
                for trace, proposal, row in zip(self.wrong, self.proposals, self.guided, strict=True)
                if proposal.intervention
            )
        return counts

    def examples(self) -> list[report.Example]:
        """The first wrong attempts, for the report."""
        return [self._example(i) for i in range(min(EXAMPLES, len(self.wrong)))]

    def _example(self, index: int) -> report.Example:
        trace, row, guided = self.wrong[index], self.proposals[index], self.guided[index]
        domain, one = self.lab.domain, row.intervention
        shown = attempt(domain, trace) if domain.separator else conversation(domain, trace)
        truth = domain.first_error(trace)
        outcome = self.drop(index).replace("_", " ")
        if guided:
            outcome = "kept" if guided.successes else "no success"
        continuations = [*guided.shown] if guided else []
        located = one.step if one else None
        return report.Example(
            trace.task, shown, located, truth, one, outcome, continuations, [*row.candidates]
        )

    def paired(self, examples: list[report.Example], ours: str) -> list[report.Example]:
        """Those that are conversations with their paired continuations, where the run, whose own proposer is `ours`,
        has drawn them; and what a filter by these makes of each."""
        stages = (_gain_of(ours), GAIN)
        rows = {row.id: row for stage in stages for row in self.lab.rows.get(stage, ())}
        found, kept = [], self.kept()
        for example, trace, guided in zip(examples, self.wrong, self.guided, strict=False):
            if not self.lab.domain.separator:
                example = dataclasses.replace(example, gain=rows.get(id_of(trace)))
            if guided and self.lab.filter == "gain" and GAIN in self.lab.rows:
                outcome = "kept" if guided.id in kept else "no gain"
                example = dataclasses.replace(example, outcome=outcome)
            found.append(example)
        return found


def attempt(domain: Domain, trace: Trace) -> report.Attempt:
    """An attempt for display."""
    pieces = domain.tokenizer.pieces(trace.response)
    ends = [end - trace.prompt_len for end in trace.step_ends]
    return report.Attempt(pieces, trace.logp[trace.prompt_len :].tolist(), ends)


def conversation(domain: Domain, trace: Trace) -> report.Conversation:
    """A judged attempt whose steps are turns, for display."""
    heard = {turn.end: turn for turn in trace.partner}
    lost = domain.regrets(trace) or []
    turns = []
    # What was said behind the conversation's end lost nothing that is known.
    for start, end, regret in itertools.zip_longest(trace.step_starts(), trace.step_ends, lost):
        reply = heard.get(end)
        own = slice(start, reply.start if reply else end)
        pieces, logp = domain.tokenizer.pieces(trace.tokens[own]), trace.logp[own].tolist()
        said = (reply.text, reply.tags) if reply else ("", ())
        turns.append(report.Turn(pieces, logp, *said, regret))
    return report.Conversation(turns, domain.own, domain.other, trace.judged.score)


def _gain_of(proposer: str) -> Stage:
    """Where the paired continuations of a proposer's interventions are kept."""
    return Stage("gain", f"of_{modules.file_stem(proposer)}")


def attempts_funnel(rows: list[AttemptRow], wrong: list[Trace], unsolved: bool) -> dict[str, int]:
    """Counts from problems to wrong attempts."""
    hard = {"hard": sum(row.correct == 0 for row in rows)} if unsolved else {}
    return {
        "problems": len(rows),
        **hard,
        "attempts": sum(row.samples for row in rows),
        "wrong": len(wrong),
    }


def losses_of(funnel: dict, gains: bool = False) -> str:
    """Where the wrong attempts were lost: "12 of 18 proposals were unparsed, 4 too long, and ...". gains: whether the
    filter asks for a gain, not for a right continuation."""
    if not funnel["wrong"]:
        return "no wrong attempt was kept"
    dropped = [(funnel[name], report.label(name)) for name in proposers.DROPS if funnel[name]]
    said = [f"{count} of {funnel['wrong']} proposals were {name}" for count, name in dropped[:1]]
    said += [f"{count} {name}" for count, name in dropped[1:]]
    if funnel["spliced"] and gains:
        said.append(f"none of the {funnel['spliced']} spliced interventions gained on the attempt's own step")
    elif funnel["spliced"]:
        said.append(
            f"no continuation of the {funnel['spliced']} spliced interventions was right in {funnel['guided']} tries"
        )
    return ", ".join(said)


def conditions(domain: Domain, trace: Trace, one: Intervention, spliced: Trace) -> dict[str, Trace]:
    """The open traces from which the effect of one intervention is measured, by the names of CONDITIONS."""
    # An attempt whose located step is its last one is finished, not open: its stop tokens go.
    spoken = int(np.flatnonzero([True, *~np.isin(trace.response, domain.tokenizer.stop_ids)])[-1])
    ends = {
        "prefix": rollout.cut_at(trace, one.step),
        "prefix_error": min(trace.step_ends[one.step], trace.prompt_len + spoken),
    }
    cut = {n: rollout.reopen(trace, end, domain.tokenizer, domain.separator) for n, end in ends.items()}
    return {"problem": rollout.open_trace(domain, trace.task), **cut, "prefix_intervention": spliced}


def effect(lab: Lab, found: Interventions, problems: int, samples: int, sampling: Sampling) -> dict:
    """The four-condition table (Table 1): fresh samples from the problem, the prefix, the prefix with the attempt's own
    wrong step, and the prefix with the intervention; one attempt a problem, all before any filter."""
    room = lab.engine.max_len
    chosen: dict[str, dict[str, Trace]] = {}
    for trace, one, spliced in found.continued():
        starts = conditions(lab.domain, trace, one, spliced)
        if max(len(each.tokens) for each in starts.values()) < room:
            chosen.setdefault(trace.task.id, starts)
    every = [*chosen.values()][:problems]
    items = [(name, starts[name]) for name in CONDITIONS for starts in every]
    decoding = lab.decoding()

    def work(sampler, part, progress):
        groups = rollout.continue_traces(
            sampler,
            decoding,
            lab.domain,
            [start for _, start in part],
            samples,
            sampling,
            rollout.Stream("effect"),
            progress=progress,
        )
        return [
            EffectRow(name, len(group), sum(trace.judged.passed for trace in group))
            for (name, _), group in zip(part, groups, strict=True)
        ]

    rows = lab.stage(Stage("effect"), items, work, samples, max(1, len(every)))
    return {
        name: estimates.effect_row([(row.samples, row.correct) for row in rows if row.condition == name])
        for name in CONDITIONS
        if every
    }


def compared(
    lab: Lab, found: Interventions, ours: str, others: Mapping[str, proposers.Proposer], attempts: int
) -> dict[str, list[ProposalRow]]:
    """What each proposer makes of the first wrong attempts; `ours` is the run's own."""
    some = found.wrong[:attempts]
    rows = {ours: found.proposals[: len(some)]}
    for name, propose in others.items() if some else ():
        rows[name] = lab.proposals(some, Stage("compare", modules.file_stem(name)), propose)
    return rows


def intervention_gains(
    lab: Lab, found: Interventions, rows: dict[str, list[ProposalRow]], attempts: int
) -> dict:
    """What the interventions of each proposer (`compared`) are worth on the first wrong attempts, in score: of paired
    continuations, with the intervention and with the attempt's own step, the mean difference."""
    some, table = found.wrong[:attempts], {}
    for name, proposals in rows.items() if some else ():
        guided = lab.splice(some[: len(proposals)], proposals[: len(some)])
        gains = lab.gains(guided, some, _gain_of(name)) if guided else []
        worth = [row.gain for row in gains]
        table[name] = {
            "traces": len(gains),
            "mended": mean_of([np.array(row.mended) for row in gains]),
            "left": mean_of([np.array(row.left) for row in gains]),
            "mean": float(np.mean(worth)) if worth else None,
            "ci95": list(estimates.bootstrap_ci(worth)) if worth else [None, None],
        }
    return table


def accuracy(lab: Lab, found: Interventions, rows: dict[str, list[ProposalRow]]) -> dict:
    """Exact-location accuracy of each proposer (`compared`)."""
    some = found.wrong[: max(map(len, rows.values()))]
    if not some or not lab.domain.oracle:
        return {}
    truth = [lab.domain.first_error(trace) for trace in some]
    table: dict[str, dict] = {}
    for name, proposals in rows.items():
        steps = [row.intervention.step if row.intervention else None for row in proposals]
        exact = [step is not None and step == true for step, true in zip(steps, truth, strict=True)]
        table[name] = {
            "exact": sum(exact),
            "located": sum(step is not None for step in steps),
            "traces": len(some),
            "ci95": list(estimates.bootstrap_ci(exact)),
        }
    if "likelihood_ratio" in table:
        engine, params = lab.engine, lab.decoding()
        if lab.proposer_lm:
            engine, params = lab.proposer_lm.engine, lab.proposer_lm.params
        every = likelihood_ratio.all_falls(engine, params, lab.domain, some)
        table["likelihood_ratio"]["curve"] = likelihood_ratio.curve(every, truth)
    return table


def drift(lab: Lab, some: list[Trace], fixed: list[Trace]) -> dict:
    """NLL under the base model of prefix, intervention and reference tokens; each policy's NLL of the interventions and
    its next-token entropy along the same attempts of the base model. Nats per token.

    Args:
      some: guided attempts. fixed: wrong attempts.

    Returns: {"nll", "entropy", "intervention_nll"}.
    """
    prompts = [rollout.open_trace(lab.domain, t.task).tokens for t in some]
    encode = lab.domain.tokenizer.encode
    references = [np.concatenate([p, encode(t.task.reference)]) for p, t in zip(prompts, some, strict=True)]
    spliced, attempts = [t.tokens for t in some], [t.tokens for t in fixed]

    def under_base(logps, told) -> dict:
        spans = {
            "prefix": [
                own_of(lp, t, t.prompt_len)[: int(t.own[: t.spliced].sum())]
                for lp, t in zip(logps, some, strict=True)
            ],
            "intervention": [lp[t.spliced :] for lp, t in zip(logps, some, strict=True)],
            "reference": [lp[len(p) :] for lp, p in zip(told, prompts, strict=True)],
        }
        return {name: -mean for name, found in spans.items() if (mean := mean_of(found)) is not None}

    def of_policy(logps, entropies) -> dict:
        entropy = mean_of([own_of(e, t, t.prompt_len) for e, t in zip(entropies, fixed, strict=True)])
        logp = mean_of([lp[t.spliced :] for lp, t in zip(logps, some, strict=True)])
        return {"entropy": entropy, "intervention_nll": None if logp is None else -logp}

    def row(scorer, name: str, progress) -> DriftRow:
        texts = (spliced, attempts) if name else (spliced, references)
        decoding = lab.decoding(lab.policies[name or "base"])
        (logps, _), (others, entropies) = (
            scorer.score(decoding, group, progress=progress) for group in texts
        )
        return DriftRow(name, of_policy(logps, entropies) if name else under_base(logps, others))

    def work(scorer, part, progress):
        return [row(scorer, name, progress) for name in part]

    def read(part) -> int:
        texts = [text for name in part for text in (*spliced, *(attempts if name else references))]
        return sum(map(len, texts))

    texts = len(spliced) + max(len(references), len(attempts))
    base, *rows = lab.stage(Stage("drift"), ["", *lab.policies], work, texts, 1, read, together=True)
    table = {
        key: {row.policy: row.means[key] for row in rows if row.means[key] is not None}
        for key in ("entropy", "intervention_nll")
    }
    return {"nll": base.means, **table}


def own_of(values: np.ndarray, trace: Trace, start: int) -> np.ndarray:
    """Of numbers of a trace's tokens, those from `start` on that are no partner's."""
    return values[start:][trace.own[start:]]


def mean_of(spans: list[np.ndarray]) -> float | None:
    """The mean over all tokens of all spans; None where there is none."""
    return float(np.concatenate(spans).mean()) if sum(map(len, spans)) else None
