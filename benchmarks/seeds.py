"""How often equal arms are called different when seeds are added until a difference stands.

    python benchmarks/seeds.py [--studies 20000] [--most 5 8 12] [--seed 0]

Two equal arms, one pair, seeds whose differences are normal with mean 0; every test is a report's own (over_seeds, p
below LEVEL). A look that calls them different ends the study. Printed for every number of seeds in the end: the share
called different with one look at the end, with a first look at FEWEST_SEEDS and one extension, and with a look after
every seed; then the share of those who follow "about N more seeds" again and again. A minute on a free core.
"""

from __future__ import annotations

import argparse

import numpy as np

from asrkit.comparison import FEWEST_SEEDS, LEVEL, over_seeds, seeds_for

ROUNDS, PATIENCE = 5, 30  # looks, and seeds, after which somebody who follows the advice gives up


def stands(differences: np.ndarray, count: int) -> bool:
    """Whether the first `count` differences would be called one."""
    return over_seeds(np.zeros(count), differences[:count]).p < LEVEL


def share(studies: np.ndarray, looks: list[int]) -> float:
    """Of studies (S, K), called different at any of these numbers of seeds."""
    return float(np.mean([any(stands(one, count) for count in looks) for one in studies]))


def follows_advice(differences: np.ndarray) -> bool:
    """Whether a study that is extended as its report advises, ROUNDS times at most, calls its arms different."""
    count = FEWEST_SEEDS
    for _ in range(ROUNDS):
        if stands(differences, count):
            return True
        advised = seeds_for(differences[:count])
        if advised is None or advised > PATIENCE:
            return False
        count = max(advised, count + 1)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20000, help="simulated studies of each kind")
    parser.add_argument("--most", type=int, nargs="+", default=[5, 8, 12], help="seeds in the end")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"equal arms, nominal level {LEVEL:.1%}, {args.studies} studies each")
    print(
        "| seeds in the end | one look | a look at 3 and one extension | a look after every seed |\n|---|---|---|---|"
    )
    for most in args.most:
        studies = rng.normal(size=(args.studies, most))
        ways = ([most], [FEWEST_SEEDS, most], list(range(FEWEST_SEEDS, most + 1)))
        print(f"| {most} | {' | '.join(f'{share(studies, looks):.1%}' for looks in ways)} |", flush=True)
    followed = np.mean([follows_advice(one) for one in rng.normal(size=(args.studies, PATIENCE + ROUNDS))])
    print(f"extended by as many as advised, up to {ROUNDS} looks and {PATIENCE} seeds: {followed:.1%}")


if __name__ == "__main__":
    main()
