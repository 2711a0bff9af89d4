"""Does the picture help on people's own sentences? `python benchmarks/nlvr.py --data DIR --work runs/nlvr`

NLVR (Suhr et al. 2017): a sentence, true or false of a picture of three boxes. A Bradley-Terry head learns on dev.parquet that the right
truth value beats the wrong one; it is measured on hidden.parquet, of which pictures that also occur in dev are left out, with intervals
over groups (pictures that share a sentence). Beside it: the same training on the sentence alone, the trained head without its picture
and with another's, and the commonest truth value. Every stage is kept in --work. Writes benchmarks/results/nlvr.json, also where the
picture does not help.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result import claim, write_result

from vlrm import load_scorer
from vlrm.rm.pair_eval import evaluate_pair_file
from vlrm.rm.rows import read_rows
from vlrm.rm.train_scalar import train_bradley_terry

BOXES = ((0, 0, 100, 100), (150, 0, 250, 100), (300, 0, 400, 100))


def prepare(args: argparse.Namespace, split: str, images: bool, skip: set[str]) -> Path:
    """The split as preferences in a parquet file: with `images` the three boxes or the whole picture, else the sentence alone."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    target = args.work / f"{split}_{'pictures' if images else 'sentences'}.parquet"
    if target.exists():
        return target
    rows = []
    for _, row in read_rows(args.data / f"{split}.parquet", "NLVR rows"):
        if row["pixel_md5"] in skip or (args.limit is not None and len(rows) >= args.limit):
            continue
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        parts = [picture] if args.whole else [picture.crop(box) for box in BOXES]
        right = str(row["answer"]).casefold()
        rows.append(
            {
                "id": str(row["id"]),
                "prompt": row["question"],
                "chosen": right,
                "rejected": {"true": "false", "false": "true"}[right],
                "images": [{"bytes": png(part), "path": None} for part in parts] if images else [],
                "group": str(row["group"]),
            }
        )
    kind = pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    names = [*[(name, pyarrow.string()) for name in ("id", "prompt", "chosen", "rejected", "group")], ("images", kind)]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".tmp")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(names)), part)
    part.replace(target)
    return target


def png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def over_groups(values: Mapping[str, float], groups: Mapping[str, str], resamples: int = 10_000) -> tuple[float, float, float]:
    """Mean with its 95 % interval by bootstrap over groups."""
    names = sorted(set(groups.values()))
    at = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for id, value in values.items():
        sums[at[groups[id]]] += value
        counts[at[groups[id]]] += 1
    weights = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    drawn = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def outcomes(path: Path) -> dict[str, float]:
    return {row["id"]: {"first": 1.0, "second": 0.0}.get(row["said"], 0.5) for _, row in read_rows(path)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with dev.parquet and hidden.parquet")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="tiny-checker")
    parser.add_argument("--whole", action="store_true", help="one picture instead of its three boxes")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--limit", type=int, help="rows of each split; else all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, help="folder for results/nlvr.json; else the repository's")
    args = parser.parse_args()
    seen = {row["pixel_md5"] for _, row in read_rows(args.data / "dev.parquet")}
    files = {
        (split, images): prepare(args, split, images, skip)
        for split, skip in (("dev", set()), ("hidden", seen))
        for images in (True, False)
    }
    tests = [row for _, row in read_rows(files["hidden", False])]
    groups = {row["id"]: row["group"] for row in tests}
    arms: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for name, images in (("sentence and picture", True), ("sentence alone", False)):
            folder = args.work / f"seed{seed}" / ("with" if images else "without")
            options = {"epochs": args.epochs, "batch_size": args.batch_size, "learning_rate": args.learning_rate, "save_steps": 100}
            train_bradley_terry(args.model, files["dev", images], folder, freeze_vision=False, seed=seed, centre=0.01, **options)
            blind = ("removed", "other") if images else ()
            evaluate_pair_file(
                files["hidden", images], folder / "eval", lambda folder=folder: load_scorer(folder), blind=blind,
                settings={"scorer": name}, chunk=64, worst=20,
            )  # fmt: skip
            arms.setdefault(name, []).append(outcomes(folder / "eval" / "comparisons.jsonl"))
            for how in blind:
                arms.setdefault(f"picture {how}", []).append(outcomes(folder / "eval" / f"comparisons.{how}.jsonl"))
    common = max(("true", "false"), key=lambda word: sum(row["chosen"] == word for _, row in read_rows(files["dev", False])))
    arms["commonest in training"] = [{row["id"]: float(row["chosen"] == common) for row in tests}]
    means = {name: {id: float(np.mean([run[id] for run in runs])) for id in runs[0]} for name, runs in arms.items()}
    rows = [row_of(name, values, groups) for name, values in means.items()]
    gaps: Sequence[tuple[str, str]] = [("sentence and picture", other) for other in ("sentence alone", "picture removed", "picture other")]
    claims = []
    for first, other in gaps:
        ids = means[first].keys() & means[other].keys()
        gap, low, high = over_groups({id: means[first][id] - means[other][id] for id in ids}, groups)
        claims.append(claim(f"{first} - {other}, points", "> 0", f"{100 * gap:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})", low > 0))
    command = f"python benchmarks/nlvr.py --data DIR --work DIR --epochs {args.epochs}" + (" --whole" if args.whole else "")
    write_result("nlvr", command, args.seeds, len(tests), rows, claims, **({} if args.folder is None else {"folder": args.folder}))
    for row in rows + claims:
        print(row)


def row_of(name: str, values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, Any]:
    mean, low, high = over_groups(values, groups)
    return {"arm": name, "pictures": len(values), "accuracy": round(mean, 4), "ci95": [round(low, 4), round(high, 4)]}


if __name__ == "__main__":
    main()
