"""Runs the cases of seeds given on the command line (`17`, `20-29`), by version; what fails is shrunk and shown."""

import argparse
import collections
import json
import time

from tests.support.app_server import AppServer

from .case import Case, draw, seeds_by_version, shrink
from .judge import PACKS, Judge
from .prompts import app_prompts, numbers_of, our_prompts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--device", choices=("sim", "cpu"), default="sim")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--prompt", action="store_true", help="print the prompts and run nothing")
    arguments = parser.parse_args()
    seeds = [seed for text in arguments.seeds for seed in _range(text)]
    if arguments.prompt:
        for seed in seeds:
            case = draw(seed)
            print(case.text())
            print(json.dumps({"app": app_prompts(case), "ours": our_prompts(case, numbers_of(case))}, indent=1))
        return 0
    outcomes, failed = collections.Counter(), 0
    for version, chosen in seeds_by_version(seeds).items():
        with AppServer(arguments.device, version=version, extra_packs=PACKS) as server:
            judge = Judge(server)
            for seed in chosen:
                begun = time.monotonic()
                verdict = judge(draw(seed))
                outcomes[verdict.outcome] += 1
                outcomes["streamed"] += verdict.streamed
                print(f"{verdict.outcome:14s} {time.monotonic() - begun:5.1f} s  {draw(seed).text()}", flush=True)
                if verdict.detail:
                    print(f"    {verdict.detail[:400]}")
                if verdict.problem:
                    failed += 1
                    print(f"    FAILED: {verdict.problem}", flush=True)
                    if not arguments.no_shrink:
                        print(f"    simplest: {simplest(judge, draw(seed)).text()}", flush=True)
    print(dict(outcomes), f"{failed} failed")
    return 1 if failed else 0


def simplest(judge: Judge, case: Case) -> Case:
    return shrink(case, lambda simpler: bool(judge(simpler).problem))


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    raise SystemExit(main())
