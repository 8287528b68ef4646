"""Attacks on several rows or images: how many succeed, and whether one attack succeeds on more of them than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poisonaudit.errors import UsageError
from poisonaudit.verify.statistics import Rate, success_rate


@dataclass(frozen=True)
class PairedSuccesses:
    """Two attacks on the same images.

    Attributes:
        both: images on which both succeed.
        only_a: on which the first alone does.
        only_b: on which the second alone does.
        neither: on which none does.
        difference: rate of the first minus rate of the second, None without images.
        p_value: exact McNemar test, two-sided.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float | None
    p_value: float


def success_over_images(outcomes: Sequence[Sequence[bool]], need: int | None = None, level: float = 0.95) -> Rate:
    """Share of images that an attack flips, with the Clopper-Pearson interval over images.

    Seeds of one image share its poison, so they are no independent trials: each image is decided by its seeds first,
    and images are counted.

    Args:
        outcomes: per image its successes, one per fresh seed.
        need: successful seeds that make an image count; default more than half of its own (2 of 3, 3 of 5).
        level: confidence level.

    Returns:
        The rate over images.

    Raises:
        UsageError: PA374, an image has fewer seeds than are needed, or none, or need is below 1.
    """
    counted = 0
    for image, seeds in enumerate(outcomes):
        wanted = len(seeds) // 2 + 1 if need is None else need
        if not 1 <= wanted <= len(seeds):
            raise UsageError(
                "PA374",
                f"image {image} has {len(seeds)} seeds, {wanted} successes are asked for. Retrain from more seeds, or "
                "pass a need from 1 to their number.",
            )
        counted += sum(map(bool, seeds)) >= wanted
    return success_rate(counted, len(outcomes), level)


def paired_difference(successes_a: Sequence[bool], successes_b: Sequence[bool]) -> PairedSuccesses:
    """Compare two attacks on the same images by McNemar's test in its exact form.

    Only images on which they differ tell them apart: under the null hypothesis each of these is as likely to be won by
    one as by the other, so `only_a` is binomial with probability 1/2 (McNemar 1947; this is the sign test).

    Args:
        successes_a: of the first attack, one per image.
        successes_b: of the second, in the same order.

    Returns:
        The counts, the difference of the rates and the p-value (1 where they never differ).

    Raises:
        UsageError: PA374, the numbers of images differ.
    """
    from scipy.stats import binomtest

    if len(successes_a) != len(successes_b):
        raise UsageError(
            "PA374",
            f"{len(successes_a)} and {len(successes_b)} images cannot be paired. Give one success per image for both.",
        )
    pairs = [(bool(a), bool(b)) for a, b in zip(successes_a, successes_b, strict=True)]
    both, only_a, only_b = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    apart = only_a + only_b
    return PairedSuccesses(
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=len(pairs) - both - apart,
        difference=(only_a - only_b) / len(pairs) if pairs else None,
        p_value=float(binomtest(only_a, apart).pvalue) if apart else 1.0,
    )
