"""`python -m int_jax.check domain lab/chess.py`: whether a module keeps the contract of its kind, in plain words."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from int_jax import check, datasets, domains, modules
from int_jax.check import byte_tokenizer, domain, family, proposer
from int_jax.stages import StageError
from int_jax.tokenizer import Tokenizer, json_object

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny_arithmetic"


def of_domain(options: argparse.Namespace) -> domain.Subject:
    problems = []
    if options.problems:
        problems = datasets.read(options.problems, domains.find(options.name).name, "train").tasks
    with tempfile.TemporaryDirectory() as folder:  # read once: the domain keeps what it needs of it
        tokenizer = Tokenizer(byte_tokenizer.save(Path(folder)))
    return domain.subject(options.name, tokenizer, problems)


def of_family(options: argparse.Namespace) -> family.Subject:
    return family.subject(options.name, json_object(Path(options.config)) if options.config else {})


def of_proposer(options: argparse.Namespace) -> proposer.Subject:
    return proposer.subject(options.name, Tokenizer(EMBEDDED))


KINDS: dict[str, tuple[Callable[[argparse.Namespace], Any], Sequence[check.Check]]] = {
    "domain": (of_domain, domain.CHECKS),
    "proposer": (of_proposer, proposer.CHECKS),
    "family": (of_family, family.CHECKS),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at a module and say what is wrong with it. Returns: the exit status, 1 where something is."""
    parser = argparse.ArgumentParser("python -m int_jax.check", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", help=f"a short name of the package's own, or {modules.HOW}")
    parser.add_argument("--problems", help="for a domain without problems of its own: a file with some")
    parser.add_argument(
        "--config", help="for a model family that transformers does not know: a config.json of it"
    )
    options = parser.parse_args(arguments)
    subject_of, checks = KINDS[options.kind]
    try:
        subject = subject_of(options)
    except (ValueError, StageError, FileNotFoundError) as error:
        print(f"int_jax: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        print(
            f"int_jax: the {options.kind} {options.name} cannot be made: {check.told(error)}", file=sys.stderr
        )
        return 1
    bad = 0
    for one in checks:
        try:
            found = check.faults(one, subject)
        except check.Skipped as reason:
            print("skip ", check.promise(one), f"({reason})")
            continue
        bad += bool(found)
        print("FAULT" if found else "ok   ", check.promise(one))
        for fault in found:
            print(f"      - {fault}")
    print(f"{options.kind} {options.name}: {bad or 'none'} of {len(checks)} checks found a fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
