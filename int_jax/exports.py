"""The InT set, and the problems for a policy gradient, in the formats of other trainers (docs/export.md).

A guided attempt is token ids: what the policy drew, and the step that was spliced in. A trainer that is given text
tokenises it again, and need not come to the same ids; so ids and labels stand beside the text where there is room.
"""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from int_jax.batching import intervention_weights
from int_jax.domains import Domain
from int_jax.intervention_training import sft_sequence
from int_jax.stages import write_atomically
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, Trace

UNTRAINED = -100  # the label of a token that is not trained, by PyTorch's cross_entropy
JSON_ROWS = Iterable[dict[str, Any]]


class Example(NamedTuple):
    """One guided attempt to be fine-tuned on.

    Attributes:
      id: of its problem. messages: what the policy was shown. tokens: [length] int32, prompt and response.
      prompt_len: the response is tokens[prompt_len:]. first: all tokens from here on are trained, none before.
    """

    id: str
    messages: list[dict[str, str]]
    tokens: np.ndarray
    prompt_len: int
    first: int


def example(
    domain: Domain,
    trace: Trace,
    weigh: Callable[[Trace], np.ndarray] = intervention_weights,
    end_of_turn: int | None = None,
) -> Example:
    """A guided attempt with the tokens that `intervention_training.sft` trains; `weigh` and `end_of_turn` are its own.

    Raises: ValueError where these are not one span of equal weight at the end.
    """
    sequence = sft_sequence(trace, weigh, end_of_turn)
    trained = np.flatnonzero(sequence.ce)
    weights = sorted({float(weight) for weight in sequence.ce[trained]})
    if len(weights) != 1:
        raise ValueError(
            f"task {trace.task.id}: its tokens are trained with the weights {weights}, and a format says only which "
            "are trained: give prefix and intervention the same weight, or prefix 0"
        )
    # Weights 0 0 0 1 1: trained from token 3 on. 0 1 0 1 cannot be said by one place.
    first = int(trained[0])
    if len(trained) != len(sequence.tokens) - first:
        raise ValueError(f"task {trace.task.id}: the trained tokens are not all behind token {first}")
    messages = domain.view(trace.task, [], "solver")
    return Example(trace.task.id, messages, sequence.tokens, trace.prompt_len, first)


# The InT set: a row for each example ------------------------------------------------------------------------


def labels(one: Example) -> list[int]:
    return [UNTRAINED] * one.first + one.tokens[one.first :].tolist()


def with_tokens(row: dict[str, Any], one: Example) -> dict[str, Any]:
    """The row with exact ids and labels: a trainer that finds `input_ids` takes them, and tokenises nothing."""
    return {**row, "input_ids": one.tokens.tolist(), "labels": labels(one)}


def as_text(tokenizer: Tokenizer, one: Example) -> dict[str, Any]:
    """`prompt` and `completion` as texts, the chat template applied: what is trained is the completion."""
    prompt, completion = tokenizer.decode(one.tokens[: one.first]), tokenizer.decode(one.tokens[one.first :])
    return {"id": one.id, "prompt": prompt, "completion": completion}


def response(tokenizer: Tokenizer, one: Example) -> str:
    """The text of the whole response, as the content of one assistant message.

    Raises: ValueError where one message cannot hold it or a trainer of messages would train more than it.
    """
    instead = "take the format trl, whose token ids say exactly what is trained"
    if one.first != one.prompt_len:
        raise ValueError(
            f"task {one.id}: of its response only a part is trained, and a message is trained whole: {instead}"
        )
    if any(message["role"] == "assistant" for message in one.messages):
        raise ValueError(
            f"task {one.id}: its prompt holds turns of the assistant (worked examples), which would be trained, too: "
            f"{instead}"
        )
    if set(one.tokens[one.prompt_len : -1].tolist()) & set(tokenizer.stop_ids):
        raise ValueError(f"task {one.id}: its response is of several turns, and a message of one: {instead}")
    return tokenizer.text(one.tokens[one.prompt_len :])


def as_messages(tokenizer: Tokenizer, one: Example) -> dict[str, Any]:
    """`messages`, of which the last is the assistant's: prefix and intervention, a turn that is not finished."""
    answer = {"role": "assistant", "content": response(tokenizer, one)}
    return {"id": one.id, "messages": [*one.messages, answer]}


def as_prompt_and_completion_messages(tokenizer: Tokenizer, one: Example) -> dict[str, Any]:
    """`prompt` and `completion` as lists of messages."""
    # The last message is the assistant's.
    *prompt, answer = as_messages(tokenizer, one)["messages"]
    return {"id": one.id, "prompt": prompt, "completion": [answer]}


def split_system(messages: list[dict[str, str]]) -> tuple[str, list[dict[str, str]]]:
    """The content of a system message at the beginning, or "", and the others."""
    # The formats of Alpaca and ShareGPT have a column for it.
    return (messages[0]["content"], messages[1:]) if messages[0]["role"] == "system" else ("", messages)


def as_alpaca(tokenizer: Tokenizer, one: Example) -> dict[str, Any]:
    """`instruction`, `input`, `output`, `system`; LLaMA-Factory applies its own template to them."""
    system, turns = split_system(one.messages)
    output = response(tokenizer, one)
    instruction = "\n".join(turn["content"] for turn in turns)
    return {"instruction": instruction, "input": "", "output": output, "system": system}


SHAREGPT = {"user": "human", "assistant": "gpt"}


def as_sharegpt(tokenizer: Tokenizer, one: Example) -> dict[str, Any]:
    """`conversations` of "human" and "gpt", and `system`."""
    system, turns = split_system(as_messages(tokenizer, one)["messages"])
    said = [{"from": SHAREGPT[turn["role"]], "value": turn["content"]} for turn in turns]
    return {"conversations": said, "system": system}


# Problems for a policy gradient: a row for each -------------------------------------------------------------


def as_problem(domain: Domain, task: Task) -> dict[str, Any]:
    """`prompt` as messages, and `answer`: of TRL's GRPO, whose reward functions are given the other columns, and of a
    verifiers environment (prime-rl). The reference solution stays here: no policy may see it."""
    return {"id": task.id, "prompt": domain.view(task, [], "solver"), "answer": task.answer}


def as_verl_problem(domain: Domain, task: Task, index: int, split: str = "train") -> dict[str, Any]:
    """The five columns of verl's RLHFDataset; `data_source` names the reward function."""
    return {
        "data_source": f"int_jax/{domain.name}",
        "prompt": domain.view(task, [], "solver"),
        "ability": domain.name,
        "reward_model": {"style": "rule", "ground_truth": task.answer},
        "extra_info": {"split": split, "index": index, "id": task.id},
    }


# Files ------------------------------------------------------------------------------------------------------


def write_jsonl(path: Path, rows: JSON_ROWS) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def write_parquet(path: Path, rows: JSON_ROWS) -> None:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), content)
    write_atomically(path, content.getvalue())


class Export(NamedTuple):
    """What is written: the InT set and the problems of one run. tokens: whether ids stand beside texts."""

    domain: Domain
    examples: list[Example]
    problems: list[Task]
    tokens: bool = True

    def rows(self, form: Callable[[Tokenizer, Example], dict[str, Any]], tokens: bool = False) -> list[dict]:
        """All examples in one form, with ids where it has room for them and they are wanted."""
        made = [(form(self.domain.tokenizer, one), one) for one in self.examples]
        return [with_tokens(row, one) if tokens and self.tokens else row for row, one in made]


def write_trl(made: Export, folder: Path) -> None:
    write_jsonl(folder / "sft.jsonl", made.rows(as_text, tokens=True))
    write_jsonl(folder / "rl.jsonl", (as_problem(made.domain, task) for task in made.problems))


def write_messages(made: Export, folder: Path) -> None:
    write_jsonl(folder / "sft.jsonl", made.rows(as_messages, tokens=True))


def write_llama_factory(made: Export, folder: Path) -> None:
    """Two data files, and the dataset_info.json that describes them. It has no trainer with an answer to compare."""
    write_json(folder / "int_alpaca.json", made.rows(as_alpaca))
    write_json(folder / "int_sharegpt.json", made.rows(as_sharegpt))
    alpaca = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    sharegpt = {"messages": "conversations", "system": "system"}
    about = {
        "int_alpaca": {"file_name": "int_alpaca.json", "columns": alpaca},
        "int_sharegpt": {"file_name": "int_sharegpt.json", "formatting": "sharegpt", "columns": sharegpt},
    }
    write_json(folder / "dataset_info.json", about)


def write_verl(made: Export, folder: Path) -> None:
    write_parquet(folder / "sft.parquet", made.rows(as_messages, tokens=True))
    problems = (as_verl_problem(made.domain, task, index) for index, task in enumerate(made.problems))
    write_parquet(folder / "rl.parquet", problems)


def write_prime_rl(made: Export, folder: Path) -> None:
    write_jsonl(folder / "sft.jsonl", made.rows(as_prompt_and_completion_messages))
    write_jsonl(folder / "rl.jsonl", (as_problem(made.domain, task) for task in made.problems))


FORMATS: dict[str, Callable[[Export, Path], None]] = {
    "trl": write_trl,
    "messages": write_messages,
    "llama_factory": write_llama_factory,
    "verl": write_verl,
    "prime_rl": write_prime_rl,
}


def tokenised_alike(tokenizer: Tokenizer, one: Example) -> bool:
    """Whether the text, tokenised as any other trainer does, gives the very ids of the example."""
    row = as_text(tokenizer, one)
    return (
        tokenizer.hf.encode(row["prompt"] + row["completion"], add_special_tokens=False)
        == one.tokens.tolist()
    )
