"""Shards on many machines by Ray Data: the function that makes one shard on one machine, run by a pool of workers. Extra `ray`.

    pip install "vlrm[ray]";  vlrm synth labels ... --shards 16 --ray_workers 4

Every worker loads its engines once and makes one shard after another. The folder of the output must be one that all machines share. A
shard is journaled as ever: run again after a kill, finished ones are found done and broken ones go on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from ...types import InputError

RunShard = Callable[[tuple[int, int]], dict[str, Any]]


def label_on_ray(make_runner: Callable[[], RunShard], shards: int, workers: int, **resources: Any) -> list[int]:
    """Runs `make_runner()((i, shards))` for every shard i of 1..shards on `workers` workers; the numbers of the finished shards, in order.

    `make_runner` is called once in each worker, and must be picklable. `resources` go to Ray, such as `num_gpus=1` for each worker. Uses
    the Ray that is running or that RAY_ADDRESS names, else starts one here. An InputError of a worker is raised here.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError('Ray is not installed: pip install "vlrm[ray]", or start the shards by hand with --shard i/n')
    if shards < 1 or workers < 1:
        raise InputError(f"shards and ray_workers must be at least 1, got {shards} and {workers}")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init()
    pool = ray.data.ActorPoolStrategy(size=min(workers, shards))
    work = ray.data.from_items([{"shard": index} for index in range(1, shards + 1)], override_num_blocks=shards)
    done = work.map_batches(_Worker, fn_constructor_args=(make_runner, shards), batch_size=1, compute=pool, **resources).take_all()
    if faults := [row["fault"] for row in done if row["fault"]]:
        raise InputError(faults[0])
    return sorted(row["shard"] for row in done)


class _Worker:
    """Makes shards, one after another, with engines that are loaded once. What a user can put right travels back as text."""

    def __init__(self, make_runner: Callable[[], RunShard], shards: int):
        self.run, self.shards = make_runner(), shards

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        faults = []
        for index in batch["shard"]:
            try:
                self.run((int(index), self.shards))
                faults.append("")
            except InputError as error:
                faults.append(str(error))
        return {"shard": batch["shard"], "fault": faults}
