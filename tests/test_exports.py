"""The InT set in other trainers' formats: the very tokens of the run, and texts that are theirs."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import export
from experiments.configs import default
from int_jax import exports, rollout
from int_jax.batching import intervention_weights
from int_jax.check import byte_tokenizer
from int_jax.domains import math
from int_jax.rows import AttemptRow, GuidedRow
from int_jax.stages import StageError, Workdir
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task, Trace, to_json

TASK = Task("t", "math", "What is the sum?", "The sum, at last, is 17.", "17")
STEPS = st.lists(st.sampled_from(["n is even.", "So the sum is 12", "the", "2 + 2 = 4", "(6)"]), min_size=1)


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """Mathematics over a tokenizer that spells blank lines in one token or two."""
    return math.Math(Tokenizer(byte_tokenizer.save(tmp_path_factory.mktemp("bytes"))))


def attempt(domain, steps: list[str], task: Task = TASK, ids=None) -> Trace:
    tokens = domain.tokenizer
    ids = tokens.encode("\n\n".join(steps)) if ids is None else ids
    trace = rollout.append(rollout.open_trace(domain, task), [*ids, tokens.stop_ids[0]])
    return trace.replace(step_ends=domain.steps(trace.tokens, trace.prompt_len), stop="stop")


def guided(domain, steps=("n is even.", "So the sum is 12"), step=1, text="So it is odd.", **more) -> Trace:
    return rollout.splice(attempt(domain, [*steps], **more), Intervention(step, text), domain.tokenizer)


def full(domain, end_of_turn=None, **weights) -> exports.Example:
    weigh = functools.partial(intervention_weights, **weights)
    return exports.example(domain, guided(domain), weigh, end_of_turn)


@given(steps=STEPS, data=st.data(), text=st.sampled_from(["So it is odd.", "the 3", "3"]))
def test_ids_are_the_runs_and_text_is_theirs(domain, steps, data, text):
    trace = guided(domain, steps, data.draw(st.integers(0, len(steps) - 1)), text)
    one = exports.example(domain, trace)
    row = exports.with_tokens(exports.as_text(domain.tokenizer, one), one)
    assert row["input_ids"] == trace.tokens.tolist()
    trained = [label for label in row["labels"] if label != exports.UNTRAINED]
    assert trained == row["input_ids"][-len(trained) :] == trace.response.tolist()
    assert row["prompt"] + row["completion"] == domain.tokenizer.decode(trace.tokens)
    # These steps were encoded, not drawn, so their text has one spelling: tokenised again it gives the same ids. What
    # the policy has to spell itself, the separator behind the last step, is in neither.
    assert exports.tokenised_alike(domain.tokenizer, one)
    *prompt, answer = exports.as_messages(domain.tokenizer, one)["messages"]
    assert prompt == domain.view(TASK, [], "solver") and answer["role"] == "assistant"
    assert domain.tokenizer.render(prompt) + domain.tokenizer.encode(answer["content"]) == row["input_ids"]


def test_what_was_drawn_in_other_tokens_is_told(domain):
    """A blank line as two tokens, where the tokenizer writes one: the text is the same, the ids are not."""
    ids = [
        *domain.tokenizer.encode("n"),
        *domain.tokenizer.encode("\n") * 2,
        *domain.tokenizer.encode("o\n\n12"),
    ]
    one = exports.example(domain, guided(domain, ids=ids, steps=("n", "o", "12"), step=2, text="3"))
    assert not exports.tokenised_alike(domain.tokenizer, one)
    assert exports.tokenised_alike(domain.tokenizer, full(domain))
    assert [*ids[:3]] == one.tokens[one.prompt_len :][:3].tolist()


def test_the_span_is_what_the_weights_train(domain):
    trace, end = guided(domain), domain.tokenizer.end_of_turn
    intervention = full(domain, prefix=0.0)
    assert intervention.first == trace.spliced
    row = exports.as_text(domain.tokenizer, intervention)
    assert row["completion"] == domain.tokenizer.decode(trace.tokens[trace.spliced :])
    assert "So it is odd".startswith(
        row["completion"].strip()
    )  # the full stop is one token with the separator
    labels = exports.labels(intervention)
    assert labels == [exports.UNTRAINED] * trace.spliced + trace.tokens[trace.spliced :].tolist()
    assert row["prompt"] + row["completion"] == domain.tokenizer.decode(trace.tokens)
    closed = full(domain, end)
    assert exports.labels(closed) == [*exports.labels(full(domain)), end]
    assert exports.as_text(domain.tokenizer, closed)["completion"].endswith(domain.tokenizer.decode([end]))
    assert exports.as_messages(domain.tokenizer, closed) == exports.as_messages(
        domain.tokenizer, full(domain)
    )
    for weights in ({"prefix": 0.5}, {"intervention": 0.0, "prefix": 0.0}, {"intervention": 0.0}):
        with pytest.raises(ValueError, match=r"task t: .*train"):
            full(domain, **weights)


def test_what_a_message_cannot_hold_is_refused(domain, tmp_path):
    tokens = domain.tokenizer
    with pytest.raises(ValueError, match=r"task t: of its response only a part is trained.*format trl"):
        exports.as_messages(tokens, full(domain, prefix=0.0))
    one, said = full(domain), {"role": "assistant", "content": "4"}
    shown = one._replace(messages=[*one.messages, said, *one.messages])
    with pytest.raises(ValueError, match="task t: its prompt holds turns of the assistant"):
        exports.as_sharegpt(tokens, shown)
    turns = np.insert(one.tokens, one.prompt_len + 2, tokens.end_of_turn)
    with pytest.raises(ValueError, match="task t: its response is of several turns"):
        exports.as_alpaca(tokens, one._replace(tokens=turns))
    for unheld in (full(domain, prefix=0.0), shown, one._replace(tokens=turns)):
        made = exports.Export(domain, [unheld], [])
        for write in (exports.write_llama_factory, exports.write_verl, exports.write_prime_rl):
            with pytest.raises(ValueError, match="format trl"):
                write(made, tmp_path)
        exports.write_trl(made, tmp_path)


def test_a_system_turn_has_its_place(domain, tmp_path):
    briefed = math.Math(domain.tokenizer, system="Be brief.")
    one = exports.example(briefed, guided(briefed))
    alpaca, sharegpt = (form(domain.tokenizer, one) for form in (exports.as_alpaca, exports.as_sharegpt))
    assert alpaca["system"] == sharegpt["system"] == "Be brief."
    assert alpaca["instruction"] == sharegpt["conversations"][0]["value"] == "What is the sum?"
    assert exports.as_messages(domain.tokenizer, one)["messages"][0]["role"] == "system"


# Files --------------------------------------------------------------------------------------------------------

OTHER = dataclasses.replace(
    TASK, id="u", problem="What is the product?", answer="60", reference="It is 5 * 12."
)


@pytest.fixture
def made(domain):
    return exports.Export(domain, [full(domain), full(domain)._replace(id="u")], [TASK, OTHER])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_trl(made, tmp_path):
    exports.write_trl(made, tmp_path)
    rows = lines(tmp_path / "sft.jsonl")
    assert [row["id"] for row in rows] == ["t", "u"]
    for row, one in zip(rows, made.examples, strict=True):
        assert row.keys() == {"id", "prompt", "completion", "input_ids", "labels"}
        assert row["input_ids"] == one.tokens.tolist() and len(row["labels"]) == len(row["input_ids"])
    assert lines(tmp_path / "rl.jsonl")[1] == {
        "id": "u",
        "prompt": [{"role": "user", "content": "What is the product?"}],
        "answer": "60",
    }
    exports.write_trl(made._replace(tokens=False), tmp_path)
    assert lines(tmp_path / "sft.jsonl")[0].keys() == {"id", "prompt", "completion"}


def test_llama_factory(made, tmp_path):
    """dataset_info.json names files that are there, and columns that their rows have (data/README.md there)."""
    exports.write_llama_factory(made, tmp_path)
    about = json.loads((tmp_path / "dataset_info.json").read_text())
    rows = {name: json.loads((tmp_path / one["file_name"]).read_text()) for name, one in about.items()}
    assert {path.name for path in tmp_path.iterdir()} == {
        "dataset_info.json",
        *(one["file_name"] for one in about.values()),
    }
    for name, one in about.items():
        assert one.keys() <= {"file_name", "formatting", "columns"}
        assert all({*row} == {*one["columns"].values()} for row in rows[name]) and len(rows[name]) == 2
    answer = made.domain.tokenizer.text(made.examples[0].tokens[made.examples[0].prompt_len :])
    assert rows["int_alpaca"][0] == {
        "instruction": "What is the sum?",
        "input": "",
        "output": answer,
        "system": "",
    }
    said = rows["int_sharegpt"][0]["conversations"]
    assert said == [{"from": "human", "value": "What is the sum?"}, {"from": "gpt", "value": answer}]


def test_verl(made, tmp_path):
    """The columns of MultiTurnSFTDataset and of RLHFDataset (docs/preparation/prepare_data.rst there)."""
    exports.write_verl(made, tmp_path)
    sft, rl = (pq.read_table(tmp_path / name).to_pylist() for name in ("sft.parquet", "rl.parquet"))
    assert [turn["role"] for turn in sft[0]["messages"]] == ["user", "assistant"]
    assert sft[0]["input_ids"] == made.examples[0].tokens.tolist()
    assert rl[1] == {
        "data_source": "int_jax/math",
        "prompt": [{"role": "user", "content": "What is the product?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "60"},
        "extra_info": {"split": "train", "index": 1, "id": "u"},
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl.parquet", "sft.parquet"]


def test_prime_rl(made, tmp_path):
    """Prompt and completion are messages, which its trainer joins; "messages" would take their place."""
    exports.write_prime_rl(made, tmp_path)
    for row in lines(tmp_path / "sft.jsonl"):
        assert row.keys() == {"id", "prompt", "completion"}
        assert [turn["role"] for turn in row["prompt"] + row["completion"]] == ["user", "assistant"]
    assert lines(tmp_path / "rl.jsonl") == [exports.as_problem(made.domain, task) for task in made.problems]


@pytest.mark.parametrize("name", exports.FORMATS)
def test_no_format_shows_the_reference(made, tmp_path, name):
    exports.FORMATS[name](made, tmp_path)
    for path in tmp_path.iterdir():
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        assert (
            "at last" not in text and "5 * 12" not in text and "What is the" in text
        ) or "file_name" in text


# A run's folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, domain):
    """A workdir whose stages hold four guided attempts at three problems, of which two are kept."""
    config = default.get_config()
    config.model, config.domain = domain.tokenizer.path, default.domain("math")
    config.train.row_length = 400
    texts = {"a": "n is even.", "b": "m is even.", "c": "k is even."}
    tasks = {name: dataclasses.replace(TASK, id=name, problem=f"{name}: {TASK.problem}") for name in texts}
    made = {name: attempt(domain, [text, "So 12"], tasks[name]) for name, text in texts.items()}
    spliced = {
        name: rollout.splice(one, Intervention(1, "So 3"), domain.tokenizer) for name, one in made.items()
    }
    stages = {
        "attempts": [AttemptRow(tasks[name], 2, int(name == "c"), (made[name],)) for name in texts],
        "guided": [GuidedRow(spliced[name], 4, wins) for name, wins in (("a", 0), ("b", 1), ("c", 0))],
    }
    stages["guided"].append(GuidedRow(spliced["b"].replace(key=(0, 1)), 4, 4))

    def prepare(**knobs):
        for key, value in knobs.items():
            section, _, knob = key.partition("__")
            config[section][knob] = value
        work = Workdir(tmp_path / f"run{len(knobs)}", config.to_dict(), {})
        for stage, rows in stages.items():
            work.rows(
                stage,
                [rows[:2], rows[2:]],
                lambda parts, _: [(to_json(part), {"tokens": 1}) for part in parts],
            )
        return work.path

    return SimpleNamespace(prepare=prepare, tasks=tasks)


def ids(folder, name):
    return [row["id"] for row in lines(folder / "trl" / f"{name}.jsonl")]


def test_a_run_s_folder_is_exported(run, tmp_path):
    said = export.export(run.prepare(), tmp_path / "out", [*exports.FORMATS])
    assert "2 guided attempts and 1 problems" in said and "2 of the 2 have the ids" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(exports.FORMATS)
    assert ids(tmp_path / "out", "sft") == ["b", "b"] and ids(tmp_path / "out", "rl") == ["b"]


@pytest.mark.parametrize(
    ("knobs", "sft", "rl"),
    [
        ({"rl__pool": "hard"}, ["b", "b"], ["a", "b"]),
        ({"sft__filter": "none"}, ["a", "b", "c", "b"], ["b"]),
        ({"rl__pool": "hard", "problems__hard": ()}, ["b", "b"], ["a", "b", "c"]),
    ],
    ids=str,
)
def test_it_is_what_the_run_takes(run, tmp_path, knobs, sft, rl):
    export.export(run.prepare(**knobs), tmp_path / "out", ["trl"])
    assert (ids(tmp_path / "out", "sft"), ids(tmp_path / "out", "rl")) == (sft, rl)


def test_the_runs_weights_hold(run, tmp_path, domain):
    export.export(run.prepare(sft__prefix=0.0, sft__end_of_turn=True), tmp_path / "out", ["trl"])
    for row in lines(tmp_path / "out" / "trl" / "sft.jsonl"):
        assert row["completion"].strip() == f"So 3{domain.tokenizer.decode([domain.tokenizer.end_of_turn])}"


def test_what_there_is_nothing_of_is_said(run, tmp_path):
    with pytest.raises(StageError, match=r"manifest\.json: missing: --workdir is the folder of a run"):
        export.export(tmp_path, tmp_path / "out", ["trl"])
    with pytest.raises(StageError, match="--formats: 'axolotl' is none of trl, messages"):
        export.export(run.prepare(), tmp_path / "out", ["axolotl"])
    with pytest.raises(StageError, match="none of 4 guided attempts was kept"):
        export.export(run.prepare(train__row_length=3), tmp_path / "out", ["trl"])
    folder = run.prepare(rl__pool="hard", sft__filter="none")
    for path in (folder / "guided").iterdir():
        path.unlink()
    (folder / "guided").rmdir()
    with pytest.raises(StageError, match="guided: missing: the run has not come to the stage guided"):
        export.export(folder, tmp_path / "out", ["trl"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's and PyTorch's own
def test_trl_trains_the_very_tokens(tiny_dir, tmp_path):
    """What SFTTrainer makes of the files, on the embedded model's tokenizer and template."""
    trl = pytest.importorskip("trl", reason="pip install trl, in an environment of its own")
    datasets = pytest.importorskip("datasets")
    domain = math.Math(Tokenizer(tiny_dir))
    task = dataclasses.replace(TASK, problem="Start with 9, add 7, times 4, take 9.")
    texts = [("9 + 7 = 16", "16 * 4 = 54"), ("9 + 7 = 17", "17 * 4 = 68", "68 - 9 = 59")]
    traces = [guided(domain, steps, 1, "16 * 4 = 64", task=task) for steps in texts]
    made = exports.Export(domain, [exports.example(domain, trace) for trace in traces], [task])
    exports.write_trl(made, tmp_path)
    exports.write_prime_rl(made, tmp_path / "chat")
    eos = domain.tokenizer.hf.eos_token_id

    def trained(path, *columns):
        data = datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        settings = trl.SFTConfig(
            str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", max_length=None
        )
        trainer = trl.SFTTrainer(str(tiny_dir), settings, train_dataset=data.remove_columns(columns))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(traces))])
        rows = zip(
            batch["input_ids"].tolist(),
            batch["labels"].tolist(),
            batch["attention_mask"].tolist(),
            strict=True,
        )
        return [(ids[: sum(mask)], labels[: sum(mask)]) for ids, labels, mask in rows]

    exact = [(one.tokens.tolist(), exports.labels(one)) for one in made.examples]
    assert trained(tmp_path / "sft.jsonl") == exact
    assert all(map(trl.is_conversational, lines(tmp_path / "rl.jsonl")))
    ended = [([*ids, eos], [*labels, eos]) for ids, labels in exact]
    assert trained(tmp_path / "sft.jsonl", "input_ids", "labels") == ended
    # As messages the template closes the turn; what it writes behind the end of turn is its own.
    for (ids, labels), (some, those) in zip(trained(tmp_path / "chat" / "sft.jsonl"), ended, strict=True):
        assert ids[: len(some)] == some and labels[: len(those)] == those
