"""What crafting one flip by 50 rows costs on the tanh network of the flips: seconds, gradients, products."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.attack_flips import SEED, SHARE
from benchmarks.drawn_flips import DrawnFlips
from benchmarks.timing import write
from poisonaudit import craft
from poisonaudit.attack import Budget
from poisonaudit.models import build_model

NAME = "attack_cost"
IMAGES, RADIUS = 4, 32


def run() -> None:
    """Craft for some of the drawn images, as many threads as torch takes, and store every repeat."""
    model = build_model("mlp:64-32-10?activation=tanh", input_shape=(64,), outputs=10)
    setting = DrawnFlips(model, 1000, 1e-3, SEED, IMAGES, {"tight": 0})
    repeats: list[dict[str, Any]] = []
    for index in range(IMAGES):
        budget = Budget(radius=RADIUS / 255, share=SHARE, box=(0.0, 1.0))
        wall, used = time.perf_counter(), time.process_time()
        poison = craft(setting.victim.without_cache(), setting.goal(index, "drawn"), budget, seed=index)
        repeats.append(
            {
                "image": setting.images[index],
                "seconds": time.perf_counter() - wall,
                "processor_seconds": time.process_time() - used,
                "gradients": poison.gradients,
                "products": poison.products,
                "rows": len(poison.rows),
            }
        )
    figures = {"weights": setting.victim.size, "threads": torch.get_num_threads(), "repeats": repeats}
    write(NAME, figures)
