"""What the scripts share that run named cases: their arguments, and the count at the end."""

import argparse
import collections
import os
import random
from pathlib import Path


class Skip(Exception):
    """This case cannot be run here, and why."""


def arguments(doc, cases, more=lambda parser: None):
    """`doc` is the script's own. Gives what was asked for, with the paths of the programs and a source of
    numbers; `more` adds arguments."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--bufproxy", required=True)
    parser.add_argument("--venv", required=True, type=Path)
    parser.add_argument("--only", default=",".join(cases))
    parser.add_argument("--seed", type=int, default=11)
    more(parser)
    run = parser.parse_args()
    run.bufproxy = os.path.abspath(run.bufproxy)
    run.gunicorn = os.path.abspath(run.venv / "bin/gunicorn")
    run.random = random.Random(run.seed)
    return run


def run_all(doc, cases):
    """Runs those that are asked for; True when one has failed."""
    run = arguments(doc, cases)
    count = collections.Counter()
    for name in run.only.split(","):
        print(f"{name}: {cases[name].__doc__}", flush=True)
        try:
            cases[name](run)
            count["passed"] += 1
        except Skip as why:
            count["skipped"] += 1
            print(f"  skipped: {why}")
        except AssertionError as problem:
            count["failed"] += 1
            print(f"  FAILED: {problem}")
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return count["failed"] > 0
