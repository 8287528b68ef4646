"""`poisonaudit reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from poisonaudit.cli.console import print_json, reporting
from poisonaudit.cli.options import arguments, shared


@click.command("reproduce")
@click.argument("name")
@click.option("--root", metavar="DIR", help="Folder of CIFAR-10 in its makers' form; wang-* then take resnet56.")
@shared("model", "weights", "data", "limit")
@click.option(
    "--decay",
    type=float,
    metavar="X",
    help="Weight decay, above 0: (X/2)|w|^2; default 5e-3, with --root 5e-4, for despres-cnn on 28 x 28 1e-2.",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="T",
    help="Relative gradient of every training; default 1e-9, in single precision 1e-6.",
)
@shared("max-gradients")
@click.option("--depth", type=int, metavar="N", help="despres-square, -product: depths 1 to N; default 6.")
@click.option(
    "--draws",
    type=int,
    metavar="N",
    help="despres-random: networks to draw (1,000; with --quick 100). weight-noise: noise per matrix (64; 16).",
)
@click.option(
    "--strengths",
    metavar="LIST",
    help="lipschitz-training: factors of the penalties, comma separated, such as 1e-3,1e-2.",
)
@click.option("--quick", is_flag=True, default=None, help="Fewer rows, draws, steps or networks.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out; finished stages are kept.")
@shared("seed", "device", "out", "json")
def command(name: str, resume: bool, out: Path | None, as_json: bool, **given: Any) -> None:
    """Compute a table or figure of the source papers again, beside the printed values.

    NAME is one of `ls reproductions`. wang-*: without --root everything runs on the bundled digits at 32 x 32.
    despres-cnn: --data digits, or mnist:DIR and other pictures; --limit, --decay, --quick and --seed.
    Other despres-*: no data; of the options above only --depth, --draws, --quick and --seed apply.
    lipschitz-training: digits; --model, --strengths, --quick and --seed.
    daroczy-*: digits, or CIFAR-10 with --root; --limit, --decay, --quick, --seed and --device; -figure2 has no data.
    weight-noise: digits; --draws, --quick and --seed.
    """
    with reporting() as report:
        from poisonaudit.cli.pipeline.reproduce import run_reproduction

        done = run_reproduction(name, given, out, resume=resume, arguments=arguments(), report=report)
    if as_json:
        print_json(done.result.to_json())
        return
    from poisonaudit.cli.pipeline.reproduce import reproduction_text

    click.echo(reproduction_text(done.result))
    click.echo(f"\nreport: {done.path / 'reproduction.html'}")
