"""K_5 of a network in stages with every rounding accounted for.

Exact means: real arithmetic on the float64 values of weights and slopes. Let u = 2^-53, `gamma_k = k u / (1 - k u)`. In
one stage with sources s (input and activations), L of them on the longest path:

1. A pushed or pulled column `C_(t,s) sigma` meets at most F roundings along any path (`longest_path` counts every map
   once forwards and once backwards), so it errs by at most `gamma_F A_(t,s) sigma`, A the same product of absolute
   values. That is where cancellation could hurt, and the only place.
2. Adding absolute values up errs by a factor of at most `1 + gamma_G`, G the columns met; by a radius: by 1 + 2u.
3. Let w be the rows of K_3 (`absolute_rows`). Expanding them at the last source gives `w_t = sum_s A_(t,s) rho_s w_s`,
   hence by induction over the sources `v_t <= (1 + gamma_G')(v^_t + L gamma_F w_t)`, where v^ is computed, v exact, and
   G' collects the factors of 2 along the way.

So `(v^ + L gamma_F w)(1 + gamma_G')` bounds the exact rows, and stages follow each other by monotonicity. w itself is a
sum of products of numbers that are not negative: its computed value errs by a factor of at most 1 + gamma_F'.

Underflow: an operation whose result is subnormal, or flushed, adds at most 2^-1022 to one entry in absolute value, and
reaches the output through absolute values; `absolute_rows(everywhere=True)` bounds the sum of these gains over all
entries a row sees, those of the stage's input and between two maps of a composition included. There are at most N of
them per entry, N = F + G', in each of N steps. Rows that are pulled lose it on the way back: what they lose at an entry
meets the rows of w there, all of which together are at most W, and then reaches the output as before. So 2^-1022 N^2
(1 + W) times the gain is added.

The plain sum of products is assumed: float64 on a CPU (no Winograd, Fourier or Strassen forms).
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from poisonaudit.lipschitz.graph_bounds import absolute_passes, absolute_rows, columns_met, longest_path
from poisonaudit.lipschitz.pushing import row_bounds
from poisonaudit.lipschitz.stages import Stages
from poisonaudit.lipschitz.unit import gamma


def certified_rows(stages: Stages, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Row bounds of K_5 with all rounding, and the last stage's as computed.

    Args:
        stages: of the network.
        weights: like an input row of the first stage; ones by default.

    Returns:
        As computed (the stages before it with their rounding) and sound, both like the last stage's output; infinite
        where something overflowed or was NaN.
    """
    first = stages.graphs[0].nodes[0].shape
    sound = torch.ones(first, dtype=torch.float64) if weights is None else weights
    rows = sound
    for number, (graph, slopes) in enumerate(zip(stages.graphs, stages.slopes, strict=True)):
        if number:
            window = stages.links[number - 1].window
            # A slope, and the windows that meet in one entry.
            terms = 4 + (0 if window is None else math.prod(window.kernel))
            sound = stages.pass_link(number - 1, sound) * (1.0 + gamma(terms))
        rows = row_bounds(graph, slopes, sound)[graph.output]
        path, met = longest_path(graph), columns_met(graph)
        absolute, everywhere = absolute_passes(graph, slopes, sound)
        gain = absolute_rows(graph, slopes, sound, everywhere=True)
        underflow = sys.float_info.min * float(path + met) ** 2 * (1.0 + everywhere) * gain
        sources = len(graph.activations()) + 1
        slack = sources * gamma(path) * (1.0 + gamma(2 * path)) * absolute + underflow
        # K_3's rows are a bound too, and with few layers the smaller slack.
        alone = (absolute + underflow) * (1.0 + gamma(2 * path + 8))
        sound = torch.minimum((rows + slack) * (1.0 + gamma(met + 8)), alone)
        sound = torch.nan_to_num(sound, nan=math.inf, posinf=math.inf)
    return torch.nan_to_num(rows, nan=math.inf, posinf=math.inf), sound
