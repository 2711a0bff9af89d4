"""How right are step labels, and what do they cost? `python benchmarks/labels.py --judge runs/quickstart/gm_prm`

Labels solutions that the tiny policy samples for world problems in every way that vlrm knows, and holds each label against the exact
truth: flat Monte-Carlo with several k, the same up to the first wrong step, binary search, the OmegaPRM tree, a judge, the hybrid rule,
consensus. Every completion is kept in --work, so an interrupted run goes on where it stopped, and the arms share what the same request
would give each of them; each is charged as if it had been alone. Writes benchmarks/results/labels.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from result import claim, write_result

from vlrm import Completion, Problem, Request, Usage, load_engine
from vlrm.data_synth import WORLDS, judge_steps, make_problems
from vlrm.data_synth.labels.binary import binary
from vlrm.data_synth.labels.flat import flat
from vlrm.data_synth.labels.judge import judge_solutions, open_judge
from vlrm.data_synth.labels.omega import omega
from vlrm.data_synth.labels.rollouts import Rollouts, Solution, lockstep, sample_solutions
from vlrm.data_synth.labels.rules import Estimate, Judgement, Ruled, apply_rule, first_wrong
from vlrm.rm.rows import append_jsonl, drop_torn_line
from vlrm.rm.stats import bootstrap_ci, paired_bootstrap
from vlrm.rm.step_metrics import Judged, first_error_accuracy

KS = (16, 8, 4, 2)  # the greatest first: its continuations begin with those of the others


class Remembered:
    """An engine whose completions are kept in a file, by request; fewer samples of a request are the first of many."""

    def __init__(self, load: Callable[[], Any], name: str, path: Path):
        self.load, self.name, self.path, self.usage, self.known = load, name, path, Usage(), {}
        self.engine: Any = None
        drop_torn_line(path)
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            self.known[row["key"]] = row["completions"]

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        keys = [json.dumps([self.name, r.messages, r.images, r.prefix, r.max_tokens, r.temperature, r.seed]) for r in requests]
        missing = [i for i, (key, r) in enumerate(zip(keys, requests, strict=True)) if len(self.known.get(key, ())) < r.n]
        for start in range(0, len(missing), 256):
            part = missing[start : start + 256]
            self.engine = self.engine or self.load()
            answers = self.engine.generate([requests[i] for i in part])
            rows = [
                {"key": keys[i], "completions": [[c.text, c.finish_reason, c.completion_tokens, c.prompt_tokens] for c in group]}
                for i, group in zip(part, answers, strict=True)
            ]
            append_jsonl(self.path, rows)
            self.known.update({row["key"]: row["completions"] for row in rows})
        return [
            [Completion(text, (), finish, tokens, prompt) for text, finish, tokens, prompt in self.known[key][: request.n]]
            for key, request in zip(keys, requests, strict=True)
        ]


@dataclass(frozen=True)
class Labelled:
    """One solution as an arm labelled it: (S,) flags, None unlabelled; None in place of them where it was dropped."""

    solution: Solution
    flags: tuple[bool | None, ...] | None
    truth: tuple[bool, ...]
    kinds: tuple[str | None, ...]  # of the wrong steps
    sections: tuple[str, ...]  # what each step claims: perception if anything is read off the picture

    @property
    def judged(self) -> Judged:
        return Judged(self.flags, self.truth, self.kinds)


def held_to_truth(solution: Solution, labels: Sequence[float | None] | None) -> Labelled:
    truths = judge_steps(solution.problem, [step.text for step in solution.steps])
    seen = tuple("perception" if any(claim.kind == "perception" for claim in truth.claims) else "reasoning" for truth in truths)
    flags = None if labels is None else tuple(None if label is None else label > 0.5 for label in labels)
    return Labelled(solution, flags, tuple(truth.right for truth in truths), tuple(truth.error for truth in truths), seen)


Arm = tuple[list[Labelled], int, int]  # the solutions as an arm labelled them, the policy's tokens for it, the judge's


def arms(problems: Sequence[Problem], args: argparse.Namespace, seed: int) -> dict[str, Arm]:
    """Every arm on the solutions of one seed."""
    work = args.work / f"{seed}.jsonl"
    policy = Remembered(lambda: load_engine(args.policy), args.policy, work)

    def fresh() -> Rollouts:
        return Rollouts(policy, seed=seed, temperature=args.temperature, max_tokens=160)

    pools, _ = sample_solutions(problems, fresh(), args.samples)
    chosen = [solution for pool in pools for solution in pool]
    found: dict[str, Arm] = {}

    def add(name: str, labelled: Sequence[tuple[Solution, Any]], tokens: int, judge_tokens: int = 0) -> None:
        found[name] = [held_to_truth(solution, ruled.labels) for solution, ruled in labelled], tokens, judge_tokens

    def searched(name: str, search: Callable[[Solution], Any], solutions: Sequence[Solution] = chosen) -> list[Estimate]:
        rollouts = fresh()
        estimates = lockstep([search(solution) for solution in solutions], rollouts)
        ruled = [(s, apply_rule("hard", e, None)) for s, e in zip(solutions, estimates, strict=True)]
        if name:
            add(name, ruled, rollouts.counts["tokens"])
        return estimates

    by_k = {k: searched(f"flat k={k}", lambda s, k=k: flat(s, k)) for k in KS}
    searched("flat k=8, to the first error", lambda s: flat(s, 8, stop_at_zero=True))
    family = {problem.id: pool for problem, pool in zip(problems, pools, strict=True)}
    for k in (16, 8, 4):
        searched(f"binary k={k}", lambda s, k=k: binary(s, k, siblings=family[s.problem.id]))
    searched("binary k=8, alone", lambda s: binary(s, 8))
    rollouts = fresh()
    grown = lockstep([omega(problem, pool, 8) for problem, pool in zip(problems, pools, strict=True)], rollouts)
    labelled = {s.id: (s, apply_rule("hard", e, None)) for tree in grown for s, e in tree}
    left = [(s, Ruled(None)) for s in chosen if s.id not in labelled]  # of problems that are too easy or too hard
    add("omega k=8", [*labelled.values(), *left], rollouts.counts["tokens"])
    if args.judge:
        spec, options, asked = open_judge(args.judge)
        judge = Remembered(lambda: load_engine(spec, **options), "judge", work.with_suffix(".judge.jsonl"))
        judgements, counts = judge_solutions(chosen, judge, **asked)
        flat_tokens = found["flat k=8"][1]
        add_judged(add, chosen, judgements, by_k[8], flat_tokens, lambda some: hybrid_tokens(some, fresh()), counts["judge_tokens"])
    return found


def add_judged(
    add: Callable[..., None],
    chosen: Sequence[Solution],
    judgements: Sequence[Judgement],
    estimates: Sequence[Estimate],
    flat_tokens: int,
    tokens_for: Callable[[Sequence[Solution]], int],
    judge_tokens: int,
) -> None:
    together = list(zip(chosen, estimates, judgements, strict=True))
    add("judge", [(s, apply_rule("judge", None, j)) for s, _, j in together], 0, judge_tokens)
    needed = [s for s, _, j in together if not j.unread and False not in j.verdicts]
    add("hybrid, flat k=8", [(s, apply_rule("hybrid", e, j)) for s, e, j in together], tokens_for(needed), judge_tokens)
    for consistency in ("first_error", "outcome"):
        ruled = [(s, apply_rule("consensus", e, j, consistency=consistency)) for s, e, j in together]
        add(f"consensus {consistency}, flat k=8", ruled, flat_tokens, judge_tokens)


def hybrid_tokens(solutions: Sequence[Solution], rollouts: Rollouts) -> int:
    """What the rollouts cost that the hybrid rule asks for."""
    lockstep([flat(solution, 8) for solution in solutions], rollouts)
    return rollouts.counts["tokens"]


def row(name: str, runs: Sequence[Arm]) -> dict[str, Any]:
    """The figures of one arm over all seeds."""
    offered = [item for labelled, _, _ in runs for item in labelled]
    kept = [item for item in offered if item.flags is not None]
    right = by_problem([(item.solution.problem.id, first_error_accuracy([item.judged])) for item in kept])
    wrong = [(item, i) for item in kept for i, flag in enumerate(item.flags) if flag is False]
    first = [(item, first_wrong(item.truth)) for item in kept if first_wrong(item.truth) is not None]

    def precision(section: str | None = None) -> float | None:
        chosen = [not item.truth[i] for item, i in wrong if section in (None, item.sections[i])]
        return round(statistics.mean(chosen), 4) if chosen else None

    def recall(kind: str | None = None) -> float | None:
        chosen = [item.flags[i] is False for item, i in first if kind in (None, item.kinds[i])]
        return round(statistics.mean(chosen), 4) if chosen else None

    low, high = bootstrap_ci(right) if right else (None, None)
    return {
        "labels": name,
        "first-error accuracy": round(statistics.mean(right), 4) if right else None,
        "ci95": None if low is None else f"{100 * low:.1f} to {100 * high:.1f}",
        "precision": precision(),
        "perception precision": precision("perception"),
        "reasoning precision": precision("reasoning"),
        "recall": recall(),
        "perception recall": recall("perception"),
        "reasoning recall": recall("reasoning"),
        "share kept": round(len(kept) / len(offered), 4) if offered else None,
        "labelled": len(kept),
        "policy tokens a labelled solution": round(sum(tokens for _, tokens, _ in runs) / max(1, len(kept)), 1),
        "judge tokens a labelled solution": round(sum(tokens for _, _, tokens in runs) / max(1, len(kept)), 1),
    }


def by_problem(figures: Sequence[tuple[str, float]]) -> list[float]:
    """The mean of each problem's solutions: these are alike, so intervals are taken over problems."""
    groups: dict[str, list[float]] = {}
    for problem, figure in figures:
        groups.setdefault(problem, []).append(figure)
    return [statistics.mean(group) for group in groups.values()]


def against_flat(name: str, runs: Sequence[dict[str, Arm]]) -> tuple[float, float, float, int]:
    """First-error accuracy of an arm minus that of flat k=8 on the solutions that both labelled, in points with its interval."""
    ours, theirs = [], []  # (problem, right) of each solution
    for run in runs:
        flat8 = {item.solution.id: item for item in run["flat k=8"][0] if item.flags is not None}
        for item in run[name][0]:
            if item.flags is not None and item.solution.id in flat8:
                problem = item.solution.problem.id
                ours.append((problem, first_error_accuracy([item.judged])))
                theirs.append((problem, first_error_accuracy([flat8[item.solution.id].judged])))
    difference = paired_bootstrap(by_problem(ours), by_problem(theirs))
    return *(100 * value for value in difference), len(ours)


def claims(rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Arm]], problems: int) -> list[dict[str, Any]]:
    table = {entry["labels"]: entry for entry in rows}
    cost = "policy tokens a labelled solution"
    made, reached = [claim("problems of each seed", ">= 300", problems, problems >= 300)], []
    for name in ("binary k=8", "binary k=4", "omega k=8"):
        points, low, high, n = against_flat(name, runs)
        share = table[name][cost] / table["flat k=8"][cost]
        reached.append(points >= -1 and share <= 0.4)
        said = f"{points:.1f} ({low:.1f} to {high:.1f}, n = {n}) at {share:.3f} of the tokens"
        made.append(claim(f"{name} minus flat k=8, first-error accuracy in points", ">= -1 for <= 0.4 of the tokens", said, reached[-1]))
    made.append(claim("binary search or the tree does so", "one of them", sum(reached), any(reached)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--judge", help="folder of a trained GM-PRM, or an engine; without it the judged arms are left out")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23])
    parser.add_argument("--samples", type=int, default=8, help="solutions of each problem")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--work", type=Path, default=Path("runs/labels"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in args.seeds:
        started = time.perf_counter()
        problems = make_problems(list(WORLDS), "test", args.problems, seed, args.work / f"problems_{seed}")
        runs.append(arms(problems, args, seed))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    rows = [row(name, [run[name] for run in runs]) for name in runs[0]]
    made = claims(rows, runs, args.problems)
    command = "python benchmarks/labels.py" + (" --judge DIR" if args.judge else "")
    write_result("labels", command, args.seeds, args.problems * len(args.seeds), rows, made, args.results)
    for line in [*rows, *made]:
        print(line)


if __name__ == "__main__":
    main()
