"""What the tiny checkpoints can do, measured: `python -m vlrm.policy.tiny_card DIR`.

DIR is the folder that `python -m vlrm.policy.pretrain` wrote, or the shipped `policy/checkpoints`. Writes the figures with their
intervals into DIR/card.json and, as a table, into DIR/README.md. `--against CARD.json` tells which figures lie within the
intervals of another build's card; the exit code is 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data_synth.checks import RIGHT
from ..data_synth.consistency_world import DIMENSIONS
from ..data_synth.corrupt import corrupted
from ..data_synth.pair_dialogues import PAIR_DIALOGUES, pair_pictures
from ..data_synth.teacher import comparison
from ..data_synth.worlds import WORLDS, sample_scene
from ..data_synth.worlds.base import answer_of, format_solution, right_solution
from ..rm.answers import extract_answer, same_answer
from ..rm.stats import bootstrap_ci
from ..serving import load_engine
from ..serving.engine import Engine, Request
from .pretrain_data import COMPARE, DESCRIBE, DIALOGUES, stated_turns
from .tiny import CHECKPOINTS, build_tokenizer

TABLE = re.compile(r"(<!-- card -->\n).*?(<!-- /card -->)", re.DOTALL)
TASKS = {
    "captions": "lines of the caption of a picture that are right",
    "solving": "greedy answers that are right",
    "sampling": "answers sampled at temperature 0.6 that are right",
    "comparing": "analyses of a corrupted solution's steps that are right in every claim, reading and mark",
    "comparing, wrong steps": "the same where there is something wrong in the step",
    "checking facts, right": "right facts of the picture that are answered with +",
    "checking facts, wrong": "wrong ones that are answered with what is true",
    "checking claims, right": "right claims of corrupted solutions that are answered with +",
    "checking claims, wrong": "wrong ones that are answered with what is true",
    "checking steps, right": "right steps of corrupted solutions that are answered with +",
    "checking steps, wrong": "wrong ones that are not",
    "reading pairs": "what each of two pictures shows in a dimension",
    "comparing pairs, agree": "pictures that agree in a dimension, answered with +",
    "comparing pairs, differ": "those that do not, answered with what the second shows",
}
SKILLS = {"tiny-policy": ("solving",), "tiny": ("solving", "comparing"), "tiny-checker": ("checking",), "tiny-pairs": ("pairs",)}


def measure(path: Path, skills: Sequence[str], n: int, seed: int) -> list[dict[str, Any]]:
    """The rows of one checkpoint's card, by task and world: `n` held-out pictures (split test) of each world.

    `skills`: solving, comparing, checking, each with captions; or pairs alone, whose "worlds" are the consistency world's dimensions."""
    engine = load_engine(str(path))
    found: list[tuple[str, str, list[float]]] = []
    if "pairs" in skills:
        found = [(task, dimension, values) for (task, dimension), values in pairs(engine, n, random.Random(f"card {seed}")).items()]
    for name, world in WORLDS.items() if "pairs" not in skills else ():
        rng = random.Random(f"card {seed} {name}")
        scenes = [sample_scene(world, "test", rng) for _ in range(n)]
        pictures = [world.draw(scene, rng) for scene in scenes]
        captions = answers(engine, [DESCRIBE] * n, pictures)
        shares = {"captions": [lines_right(said, world.describe(scene)) for said, scene in zip(captions, scenes, strict=True)]}
        gold = [answer_of(right_solution(world, scene)) for scene in scenes]
        for task, temperature in (("solving", 0.0), ("sampling", 0.6)) if "solving" in skills else ():
            said = answers(engine, [world.question(scene) for scene in scenes], pictures, temperature, seed)
            shares[task] = [float(right(text, answer)) for text, answer in zip(said, gold, strict=True)]
        if "comparing" in skills:
            shares |= comparing(engine, world, scenes, pictures, rng)
        if "checking" in skills:
            shares |= checking(engine, world, scenes, pictures, rng)
        found += [(task, name, values) for task, values in shares.items()]
    engine.close()
    rows = []
    for task, name, values in found:
        low, high = bootstrap_ci(values)
        row = {"checkpoint": path.name, "task": task, "world": name, "n": len(values)}
        rows.append(row | {"share": round(sum(values) / len(values), 4), "ci95": [round(low, 4), round(high, 4)]})
    return rows


def comparing(engine: Engine, world: Any, scenes: Sequence[Any], pictures: Sequence[Any], rng: random.Random) -> dict[str, list[float]]:
    """For each solution the share of its analyses that are right, all of them and those that tell of something wrong."""
    texts = [corrupted(world, scene, rng) for scene in scenes]
    prompts = [
        f"{world.question(scene)}\n\nSolution:\n{format_solution(steps)}\n{COMPARE}" for scene, steps in zip(scenes, texts, strict=True)
    ]
    said = answers(engine, prompts, pictures)
    gold = [comparison(world.check(scene, steps), intents=True) for scene, steps in zip(scenes, texts, strict=True)]
    wrong = [(a, b) for a, b in zip(said, gold, strict=True) if " no" in b]
    return {
        "comparing": [lines_right(a, b, "Image: ", "Logic: ") for a, b in zip(said, gold, strict=True)],
        "comparing, wrong steps": [lines_right(a, b, "Image: ", "Logic: ", holding=" no") for a, b in wrong],
    }


def checking(engine: Engine, world: Any, scenes: Sequence[Any], pictures: Sequence[Any], rng: random.Random) -> dict[str, list[float]]:
    """For each answer of the dialogues of checking whether it is right."""
    shares: dict[str, list[float]] = {}
    for task in ("facts", "claims", "steps"):
        dialogues = [DIALOGUES[task](world, scene, rng) for scene in scenes]
        stated = [stated_turns(task, world, scene, turns) for scene, turns in zip(scenes, dialogues, strict=True)]
        shown = [
            (list(zip(texts, (a for _, a in turns), strict=True)), [p]) for texts, turns, p in zip(stated, dialogues, pictures, strict=True)
        ]
        for _, answer, said in replies(engine, shown):
            hit = said != RIGHT if task == "steps" and answer != RIGHT else said == answer.strip()
            shares.setdefault(f"checking {task}, {'right' if answer == RIGHT else 'wrong'}", []).append(float(hit))
    return {task: shares[task] for task in TASKS if task in shares}


def pairs(engine: Engine, n: int, rng: random.Random) -> dict[tuple[str, str], list[float]]:
    """(task, dimension) -> whether each answer about two held-out pictures is right."""
    shares: dict[tuple[str, str], list[float]] = {}
    for task in ("pair readings", "pairs"):
        dialogues = [PAIR_DIALOGUES[task](rng, "test") for _ in range(n)]
        for text, answer, said in replies(engine, [(turns, pair_pictures(figures, rng)) for turns, figures in dialogues]):
            dimension = next(d for d in DIMENSIONS if d in text)
            name = "reading pairs" if task == "pair readings" else f"comparing pairs, {'agree' if answer == RIGHT else 'differ'}"
            shares.setdefault((name, dimension), []).append(float(said == answer.strip()))
    return {key: shares[key] for key in sorted(shares, key=lambda key: (list(TASKS).index(key[0]), DIMENSIONS.index(key[1])))}


def replies(engine: Engine, dialogues: Sequence[tuple[Sequence[tuple[str, str]], Sequence[Any]]]) -> list[tuple[str, str, str]]:
    """(what was stated, the right answer, the model's) of every turn of dialogues with their pictures; the earlier answers of a dialogue
    are the right ones. An answer is as many tokens as the right one has: where to end was not taught."""
    tokenizer, requests, asked = build_tokenizer(), [], []
    for turns, pictures in dialogues:
        messages: list[dict[str, Any]] = []
        for text, answer in turns:
            images = [] if messages else [{"type": "image"} for _ in pictures]
            messages = [*messages, {"role": "user", "content": [*images, {"type": "text", "text": text}]}]
            requests.append(Request(messages, list(pictures), max_tokens=len(tokenizer(answer).input_ids)))
            asked.append((text, answer))
            messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return [(*turn, found[0].text.strip()) for turn, found in zip(asked, engine.generate(requests), strict=True)]


def answers(engine: Engine, prompts: Sequence[str], pictures: Sequence[Any], temperature: float = 0.0, seed: int = 0) -> list[str]:
    requests = [
        Request(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            [picture],
            max_tokens=320,
            temperature=temperature,
            seed=seed + i if temperature else None,
        )
        for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
    ]
    return [completions[0].text for completions in engine.generate(requests)]


def right(text: str, gold: str) -> bool:
    answer = extract_answer(text)
    return answer is not None and same_answer(answer, gold)


def lines_right(said: str, gold: str, *starts: str, holding: str = "") -> float:
    """The share of the gold text's lines (those with one of the `starts`, and with `holding` in them) that were said in their place."""
    own, wanted = said.split("\n"), gold.split("\n")
    places = [i for i, line in enumerate(wanted) if holding in line and (not starts or line.startswith(starts))]
    return sum(i < len(own) and own[i] == wanted[i] for i in places) / len(places)


def markdown(card: dict[str, Any]) -> str:
    """The card as tables: a line for each checkpoint and task, a column for each world, then one for each dimension of pairs; shares in %
    with their intervals."""
    cells = {(row["checkpoint"], row["task"], row["world"]): row for row in card["rows"]}
    tables = []
    for columns in (tuple(WORLDS), DIMENSIONS):
        names = dict.fromkeys((row["checkpoint"], row["task"]) for row in card["rows"] if row["world"] in columns)
        lines = ["| checkpoint | task | " + " | ".join(columns) + " |", "| --- | --- |" + " --: |" * len(columns)]
        for checkpoint, task in names:
            found = [cells.get((checkpoint, task, column)) for column in columns]
            shown = [f"{100 * row['share']:.1f} ({100 * row['ci95'][0]:.1f} to {100 * row['ci95'][1]:.1f})" if row else "" for row in found]
            lines.append(f"| {checkpoint} | {task} | " + " | ".join(shown) + " |")
        tables += ["\n".join(lines) + "\n"] if names else []
    return "\n".join(tables)


def outside(card: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What this card measured outside the other card's intervals, a line each."""
    theirs = {(row["checkpoint"], row["task"], row["world"]): row for row in other["rows"]}
    found = []
    for row in card["rows"]:
        same = theirs.get((row["checkpoint"], row["task"], row["world"]))
        if same is None:
            found.append(f"{row['checkpoint']}, {row['task']}, {row['world']}: is not in the other card")
        elif not same["ci95"][0] <= row["share"] <= same["ci95"][1]:
            found.append(f"{row['checkpoint']}, {row['task']}, {row['world']}: {row['share']} outside {same['ci95']} ({same['share']})")
    return found


def write_card(folder: Path, n: int = 300, seed: int = 0, only: Sequence[str] = ()) -> dict[str, Any]:
    """Measures the checkpoints of the folder and writes `card.json` and the table in `README.md`; with `only` some checkpoints' figures are
    measured anew and the others' are kept."""
    kept = json.loads((folder / "card.json").read_text()) if only else {"rows": [], "built": None}
    found = {name: measure(folder / name, skills, n, seed) for name, skills in SKILLS.items() if not only or name in only}
    rows = [row for name in SKILLS for row in found.get(name, [row for row in kept["rows"] if row["checkpoint"] == name])]
    built = folder / "built.json"
    card = {"built": json.loads(built.read_text()) if built.exists() else kept["built"], "tasks": TASKS, "seed": seed, "rows": rows}
    replace(folder / "card.json", json.dumps(card, indent=1) + "\n")
    text = (folder if (folder / "README.md").exists() else CHECKPOINTS).joinpath("README.md").read_text()
    replace(folder / "README.md", TABLE.sub(lambda match: match[1] + markdown(card) + match[2], text))
    return card


def replace(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=300, help="pictures of each world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(SKILLS), default=[], help="measure these checkpoints anew; else all")
    parser.add_argument("--against", type=Path, help="card.json of another build")
    args = parser.parse_args()
    card = write_card(args.folder, args.n, args.seed, args.only)
    print(markdown(card))
    if args.against is None:
        return 0
    found = outside(card, json.loads(args.against.read_text()))
    print(f"{len(card['rows']) - len(found)} of {len(card['rows'])} figures lie within the other card's intervals", *found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
