"""The released scripts' rules against ours, on proposer outputs in the released format.

    python experiments/compare_released.py --source FILE --outputs COLUMN --model int_jax/assets/tiny_arithmetic

Reads rows with problem, answer, incorrect_attempt and a column that holds the proposer's output, or a list of them;
prints how many guided attempts are alike, and how often each difference (int_jax/datasets/released.py) occurs, with the
first rows that show it. The model directory gives the tokenizer.
"""

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from int_jax import domains
from int_jax.datasets import columns, released, sources
from int_jax.stages import StageError
from int_jax.tokenizer import Tokenizer

SOURCE = flags.DEFINE_string(
    "source", None, "a file, folder, glob, tfds: or huggingface: name", required=True
)
OUTPUTS = flags.DEFINE_string("outputs", None, "the column with the proposer's outputs", required=True)
MODEL = flags.DEFINE_string("model", "int_jax/assets/tiny_arithmetic", "whose tokenizer reads the texts")
SPLIT = flags.DEFINE_string("split", "train", "of a TFDS or Hugging Face name")
SHOWN = 3


def main(_):
    logging.set_verbosity(logging.WARNING)
    domain = domains.load("math", Tokenizer(MODEL.value))
    rows, bad, same, shown = 0, [], 0, defaultdict(list)
    for raw in sources.raw_rows(SOURCE.value, SPLIT.value):
        if isinstance(raw, sources.Fault):
            bad.append(raw)
            continue
        made = columns.row_of(raw, "math", ("incorrect_attempt",))
        if isinstance(made, sources.Fault):
            bad.append(made)
            continue
        if OUTPUTS.value not in raw.columns:
            raise StageError(f"{raw.place}: no column {OUTPUTS.value!r}; there are {', '.join(raw.columns)}")
        row, outputs = made[0], raw.columns[OUTPUTS.value]
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        found = released.compare(domain, row.task, row.attempt, outputs)
        rows += 1
        same += not found.differences
        for name in found.differences:
            shown[name].append(row.place)
    print(f"{SOURCE.value}: {rows} rows, {same} alike, {len(bad)} bad rows")
    for name, why in released.DIFFERENCES.items():
        if places := shown.get(name):
            print(f"  {name:<13} {len(places):>6}   {why}\n{'':24}{', '.join(places[:SHOWN])}")
    for fault in bad[:SHOWN]:
        print(f"  {fault.place}: {fault.detail}")


if __name__ == "__main__":
    try:
        app.run(main)
    except (StageError, FileNotFoundError) as error:
        sys.exit(f"int_jax: {error}")
