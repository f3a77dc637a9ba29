"""Vision features of many scenes, computed once and kept in a memory-mapped file."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import torch

import vision
from scenes import Scene, draw

BATCH = 8


def feature_file(folder: Path, scenes: int, mode: str) -> np.ndarray:
    """The memory map [scenes, 257, 384] float16 of a folder of scenes."""
    return np.memmap(folder / "features.f16", np.float16, mode, shape=(scenes, vision.TOKENS, vision.WIDTH))


def read_scenes(folder: Path) -> list[Scene]:
    return [Scene.from_json(json.loads(line)) for line in (folder / "scenes.jsonl").read_text().splitlines()]


def write_features(folder: Path, scenes: list[Scene], drawings: Path, checkpoint: Path, device: str) -> None:
    """Write `folder/scenes.jsonl` and `folder/features.f16`; does nothing where they are there already.

    On a CPU one single-threaded process per core is faster than one process with threads, above
    all on a machine that is doing something else too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(scene.to_json()) + "\n" for scene in scenes)
    listing = folder / "scenes.jsonl"
    if listing.is_file() and listing.read_text() == lines:
        return
    feature_file(folder, len(scenes), "w+").flush()
    workers = torch.get_num_threads() if device == "cpu" else 1
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=_work, args=(folder, scenes, drawings, checkpoint, device, rank, workers))
        for rank in range(workers)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        if job.exitcode:
            raise RuntimeError(f"a feature process ended with {job.exitcode}")
    listing.write_text(lines)


def _work(folder: Path, scenes: list[Scene], drawings: Path, checkpoint: Path, device: str, rank: int, workers: int) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    model = vision.load_vision(checkpoint, torch.device(device)).bfloat16()
    out = feature_file(folder, len(scenes), "r+")
    batch = BATCH if device == "cpu" else 256
    for number, start in enumerate(range(0, len(scenes), batch)):
        if number % workers == rank:
            part = scenes[start : start + batch]
            out[start : start + len(part)] = vision.features(model, [draw(scene, drawings) for scene in part]).numpy()
    out.flush()
