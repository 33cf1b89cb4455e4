"""What a run refuses before it computes anything: a bad knob must not wait hours for its stage."""

import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest
from ml_collections import ConfigDict

from experiments import build, preflight
from experiments.configs import code, default, grpo, reasoning_gym
from experiments.configs import int as intervention
from experiments.knobs import rows
from int_jax import domains, hf_format, memory
from int_jax.domains import arithmetic
from int_jax.knobs import Knob
from int_jax.sharding import make_mesh
from int_jax.stages import StageError

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("variant", ["", *intervention.VARIANTS])
@pytest.mark.parametrize("module", [intervention, grpo])
def test_the_configs_pass(module, variant):
    preflight.check(module.get_config(variant))


@pytest.mark.parametrize("variant", ["", "smoke", "chain_sum+countdown", "count_bits+gsm_symbolic"])
def test_the_configs_of_reasoning_gym_pass(variant):
    preflight.check(reasoning_gym.get_config(variant))


@pytest.mark.parametrize("variant", ["", "smoke"])
def test_the_configs_of_code_pass(variant):
    preflight.check(code.get_config(variant))


# --- every knob ---

KNOBS = dict(rows(default.TABLE, ""))
for NAME in domains.names():
    KNOBS |= {f"{NAME}: {knob}": one for knob, one in rows(domains.find(NAME).KNOBS, "domain.knobs.")}

# What is no value of a type. Text is no number, a truth value neither; a number is no text.
WRONG = {
    bool: [1, 0.0, "True", None],
    int: [1.5, "1", True, NAN, INF, None, (1,)],
    float: ["0.5", True, NAN, INF, -INF, None, (0.5,)],
    str: [1, None, True, ("a",)],
    dict: [1, "a", None, (1,)],
}


def beyond(knob: Knob) -> list:
    """Values of a number's or a text's own type that it may not have."""
    step = 1 if knob.type is int else 1e-6
    found: list = ["no such choice"] if knob.choices and knob.type is str else []
    found += [] if knob.at_least is None else [knob.at_least - step, -(10**12)]
    found += [] if knob.above is None else [knob.type(knob.above), -1e-9]
    found += [] if knob.at_most is None else [knob.at_most + step, 10**12]
    return [value for value in found if value not in knob.also]


def bad(knob: Knob) -> list:
    """Values that a knob may not have."""
    if not isinstance(knob.value, tuple):
        return [*WRONG[knob.type], *beyond(knob), *([] if knob.empty else [""])]
    good = knob.value or knob.choices[:1]
    found = [None, 1, "a", *((*good[:-1], one) for one in [*WRONG[knob.type], *beyond(knob)])]
    if knob.order == "range":
        return [*found, (), good[:1], (*good, good[-1]), (good[0] + 1, good[0])]
    found += [(*good, good[0])] + ([] if knob.empty else [()])
    return [*found, good[::-1]] if knob.order == "increasing" else found


def changed(path: str, value) -> ConfigDict:
    """The default config of a knob's domain with another value, whatever its type: as a config file may have it."""
    domain, _, knob = path.rpartition(": ")
    tree = default.get_config().to_dict()
    if domain:
        tree["domain"] = default.domain(domain).to_dict()
    group = tree
    *groups, last = knob.split(".")
    for one in groups:
        group = group[one]
    group[last] = value
    return ConfigDict(tree, type_safe=False)


@pytest.mark.parametrize("path", KNOBS)
def test_every_knob_is_held_to_its_type_and_range(path):
    preflight.check(changed(path, KNOBS[path].value))
    knob = path.rpartition(": ")[2]
    assert bad(KNOBS[path])
    for value in bad(KNOBS[path]):
        words = rf"config\.{re.escape(knob)}( = {re.escape(repr(value))}: must be |: )"
        with pytest.raises(ValueError, match=words):
            preflight.check(changed(path, value))


@pytest.mark.parametrize("path", KNOBS)
def test_every_number_has_a_lowest_value_and_every_knob_a_unit(path):
    knob = KNOBS[path]
    assert knob.unit and knob.unit[-1] != "."
    assert knob.type in (bool, str, dict) or (knob.at_least, knob.above) != (None, None) or knob.choices


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("rl.learning_rate", 1), ("sft.warmup", 0), ("sft.warmup", 1), ("eval.sampling.top_p", 1)),
        *(("rl.learning_rate", 1e30), ("sft.clip_norm", 1e30)),  # where it diverges the run says so
        *(("mesh.model", 0), ("slots", 0), ("train.rows", 0)),  # what fits
        *(("mesh.data", -1), ("mesh.model", 8), ("seeds", [3, 1]), ("seeds", (2**32 - 1,)), ("export", ())),
        *(("chat", {"enable_thinking": False}), ("proposals.compare", ("oracle",)), ("problems.hard", ())),
        *(("sft.prefix", 0), ("eval.sampling.temperature", 0.0), ("eval.ks", (8,)), ("rl.group", 2)),
        *(("arithmetic: domain.knobs.lengths", (5, 5)), ("arithmetic: domain.knobs.rare", (0, 0))),
        ("reasoning_gym: domain.knobs.tasks", {"chain_sum": {"max_terms": 3}}),
        *(("rl.rewards", {"score": 2}), ("rl.rewards", {"score": 1.0, "answered": 0.1, "right_steps": -1.0})),
        *(("rl.importance_cap", 2.0), ("rl.refill", 3)),
        *(("rl.advantage", kind) for kind in ("mean", "mean_std", "leave_one_out", "batch")),
    ],
)
def test_what_a_knob_may_be(path, value):
    preflight.check(changed(path, value))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rl": {"checkpoint_every": 0}}, r"config\.rl\.checkpoint_every = 0: must be a whole number, at least 1"),
        ({"rl": {"temperature": -1.0}}, r"rl\.temperature = -1\.0: must be a number, above 0, because greedy"),
        ({"rl": {"temperature": 0.0}}, r"rl\.temperature = 0\.0: .* greedy responses .* have no advantage"),
        ({"rl": {"group": 1}}, r"rl\.group = 1: .* at least 2, because a group of one has no advantage"),
        ({"rl": {"updates": 0}}, r"rl\.updates = 0"),
        ({"rl": {"learning_rate": -1e-6}}, r"rl\.learning_rate = -1e-06: must be a number, above 0"),
        ({"rl": {"learning_rate": 0.0}}, r"rl\.learning_rate = 0\.0"),
        ({"rl": {"clip_norm": NAN}}, r"rl\.clip_norm = nan: must be a number"),
        ({"rl": {"pool": "easy"}}, r"config\.rl\.pool = 'easy': must be one of kept, hard"),
        ({"rl": {"normalise": "length"}}, r"rl\.normalise = 'length': must be one of sequences, tokens"),
        ({"sft": {"batch": 0}}, r"sft\.batch = 0"),
        ({"sft": {"warmup": 1.5}}, r"sft\.warmup = 1\.5: must be a number, at least 0, at most 1"),
        ({"sft": {"prefix": -1.0}}, r"sft\.prefix = -1\.0"),
        ({"sft": {"epochs": 0}}, r"sft\.epochs = 0"),
        ({"train": {"rows": -1}}, r"train\.rows = -1"),
        ({"train": {"logit_chunk": 0}}, r"train\.logit_chunk = 0"),
        ({"train": {"row_length": -256}}, r"train\.row_length = -256"),
        ({"effect": {"samples": 0}}, r"effect\.samples = 0"),
        ({"guided": {"at_once": 0}}, r"guided\.at_once = 0"),
        ({"guided": {"sampling": {"top_p": 1.5}}}, r"top_p = 1\.5: must be a number, above 0, at most 1"),
        ({"attempts": {"sampling": {"top_k": 2**31}}}, r"top_k = 2147483648: .* at most 2,147,483,647"),
        ({"attempts": {"tries": 0}}, r"attempts\.tries = 0"),
        ({"proposals": {"samples": 0}}, r"proposals\.samples = 0"),
        ({"proposals": {"proposer": "gpt"}}, r"proposer = 'gpt': must be one of last_step, likelihood_ratio"),
        ({"proposals": {"proposer": "lab/p.py"}}, r"proposals: no proposer 'lab/p\.py': there is no file /.*p\.py"),
        ({"proposals": {"compare": ("oracle", "no_lab.p")}}, r"proposals: no proposer 'no_lab\.p': there is no module"),
        ({"domain": {"name": "no_lab.chess"}}, r"no domain 'no_lab\.chess': there is no module 'no_lab'"),
        ({"proposals": {"compare": ("oracle", "gpt")}}, r"compare = \('oracle', 'gpt'\): must be a tuple"),
        ({"problems": {"hard": ("train", "tset")}}, r"config\.problems\.hard = .*'tset'"),
        ({"problems": {"shard": 0}}, r"problems\.shard = 0"),
        ({"eval": {"ks": (0,)}}, r"eval\.ks = \(0,\): must be a tuple of one or more items, increasing, each a whole"),
        ({"eval": {"ks": ()}}, r"eval\.ks = \(\)"),
        ({"eval": {"ks": (8, 1)}}, r"eval\.ks = \(8, 1\): .* increasing"),
        ({"eval": {"train_problems": 0}}, r"eval\.train_problems = 0: .* at least 1, because the report"),
        ({"eval": {"samples": 0}}, r"eval\.samples = 0"),
        ({"mesh": {"data": 0}}, r"mesh\.data = 0: must be a whole number, at least 1, or -1"),
        ({"mesh": {"model": -2}}, r"mesh\.model = -2"),
        ({"device_gib": -1.0}, r"device_gib = -1\.0"),
        ({"dtype": "float8"}, r"config\.dtype = 'float8': must be one of float32, bfloat16, float16"),
        ({"decode_steps": 0}, r"config\.decode_steps = 0"),
        ({"slots": -1}, r"config\.slots = -1"),
        ({"seeds": ()}, r"config\.seeds = \(\): must be a tuple of one or more items, distinct"),
        ({"seeds": (1, 1)}, r"config\.seeds = \(1, 1\): .* distinct"),
        ({"seeds": (-1,)}, r"config\.seeds = \(-1,\)"),
        ({"arms": ("int_rl", "dpo")}, r"config\.arms = .*'dpo'.* each one of hint_rl, int_end_token"),
        ({"arms": ()}, r"config\.arms = \(\)"),
        ({"export": ("best",)}, r"config\.export = \('best',\): .* make no policy 'best', only base, int, int_rl"),
        ({"model": ""}, r"config\.model = ''"),
        ({"domain": {"name": "chess"}}, r"config\.domain\.name = 'chess': must be one of arithmetic, code, dearman"),
        ({"domain": {"knobs": {"lengths": (0, 3)}}}, r"config\.domain\.knobs\.lengths = \(0, 3\): must be the lowest"),
        ({"domain": {"knobs": {"lengths": (8, 5)}}}, r"config\.domain\.knobs\.lengths = \(8, 5\)"),
        ({"domain": {"name": "math"}}, r"config\.domain\.knobs has no knob 'lengths': it has .*grader"),
        ({"rl": {"updtes": 3}}, r"config\.rl has no knob 'updtes': it has updates, "),
        # Good alone, and not together.
        ({"eval": {"ks": (1, 64)}}, r"ks = \(1, 64\) needs as many samples, and eval\.samples = 16"),
        ({"mesh": {"data": -1, "model": -1}}, r"mesh\.data = config\.mesh\.model = -1"),
        ({"arms": ("int_rl", "rl"), "export": ("rl_matched",)}, r"make no policy 'rl_matched', only base"),
        ({"arms": ("int_rl", "rl_matched")}, r"arms = .*: the arm 'rl_matched' goes on from 'rl', which none .* add"),
        ({"arms": ("rl",), "export": ("int",)}, r"make no policy 'int', only base, rl; .*\n.*rl\.pool = 'kept'"),
        ({"rl": {"clip_low": 0.2}}, r"rl\.clip_low = 0\.2 changes nothing: the one update .* has the ratio 1"),
        ({"rl": {"clip_high": 0.28}}, r"rl\.clip_high = 0\.28 changes nothing"),
        ({"rl": {"ratio": "sequence"}}, r"rl\.ratio = 'sequence' changes nothing"),
        ({"rl": {"clip": "cispo"}}, r"rl\.clip = 'cispo' changes nothing: .* set one of them above 1, or rl\.old"),
        ({"rl": {"old": "sampler", "importance_cap": 2.0}}, r"rl\.importance_cap = 2\.0 changes nothing"),
        ({"rl": {"updates": 7, "passes": 2, "minibatches": 2}}, r"rl\.updates = 7 is no whole .* set it to 8"),
        ({"rl": {"problems": 2, "group": 2, "updates": 5, "minibatches": 5}}, r"minibatches = 5 is more than .* = 4 s"),
        ({"rl": {"keep_every": 15}}, r"rl\.keep_every = 15: .* every rl\.checkpoint_every = 10 .* to a multiple of 10"),
        ({"rl": {"keep_every": 10, "minibatches": 4}}, r"end of a batch of 4; set it to a multiple of 20"),
        ({"rl": {"keep_best": 1}}, r"rl\.keep_best = 1: nothing tells which .* validation\.every = 0"),
        ({"rl": {"keep_best": 1}, "validation": {"every": 4}}, r"keep_best = 1: .* were not evaluated; set the first"),
        ({"validation": {"every": 1}, "problems": {"test_split": "hard_validation"}}, r"in the end; set that to"),
        ({"validation": {"file": "a"}}, r"validation\.file = 'a' is not read with validation\.every = 0"),
        ({"sft": {"keep_every": 1}}, r"sft\.keep_every = 1: .* set it to a multiple of 50"),
        ({"rl": {"rewards": {"score": 2.0}, "advantage": "mean_std"}}, r"rl\.rewards\.score = 2\.0 changes nothing"),
        ({"rl": {"rewards": {"score": 2.0}, "advantage": "batch"}}, r"rl\.rewards\.score = 2\.0 changes nothing"),
        ({"rl": {"rewards": {"score": 1.0, "overlong": 1.0}}}, r"rl\.overlong = 0 tokens and .* go together"),
        ({"rl": {"overlong": 20}}, r"rl\.overlong = 20 tokens and rl\.rewards = \{'score': 1\.0\} go together"),
        ({"rl": {"rewards": {"overlong": 1.0}, "overlong": 97}}, r"overlong = 97 is more than .* = 96, the longest"),
        (
            {"domain": default.domain("math"), "arms": ("int_rl", "rl_first_error")},
            "arms: 'rl_first_error' needs a domain that knows where an attempt's first error is, and math does not",
        ),
        ({"arms": ("int_rl", "rft")}, r"arms: 'rft' needs attempts\.keep_right of at least 1, and it is 0; set it so"),
        ({"arms": ("sft_reflections",)}, r"'sft_reflections' needs guided\.keep of at least True, and it is False"),
        ({"domain": default.domain("math"), "rl": {"rewards": {"right_steps": 1.0}}}, r"no part 'right_steps': .*math"),
        ({"sft": {"prefix": 0.0, "intervention": 0.0}}, "no token is trained"),
        ({"lora": {"alpha": 8.0}}, r"config\.lora\.alpha = 8\.0 changes nothing with lora\.rank = 0"),
        ({"lora": {"matrices": ("q", "v")}}, r"lora\.matrices = \('q', 'v'\) changes nothing with lora\.rank = 0"),
        ({"lora": {"rank": 4, "matrices": ("q", "embed")}}, r"lora\.matrices = .*: must be .* one of q, k, v, o, gate"),
        ({"domain": default.domain("math")}, r"proposals\.compare = .*: the domain math does not know"),
        (
            {"domain": default.domain("math"), "proposals": {"compare": (), "proposer": "oracle"}},
            r"proposer = 'oracle': the domain math does not know where",
        ),
        ({"enter": {"source": "a"}, "problems": {"train_file": "b"}}, r"enter\.source = 'a' brings problems"),
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_knob_is_named_with_what_it_must_be(change, words):
    config = intervention.get_config("tiny")
    if isinstance(change.get("domain"), ConfigDict):
        change = dict(change)
        config.domain = change.pop("domain")
    config.update(change)
    with pytest.raises(ValueError, match=words):
        preflight.check(config)


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ({}, r"config\.rl\.rewards = \{\} rewards nothing: set it to \{'score': 1\.0\}"),
        (
            {"scores": 1.0},
            r"config\.rl\.rewards has no part 'scores': .* has score, passed, answered, overlong, right_steps",
        ),
        ({"score": 1.0, "answered": 0}, r"config\.rl\.rewards\.answered = 0: .* leave the part out for 0"),
        *(
            ({"score": bad}, rf"rl\.rewards\.score = {bad!r}: must be a number")
            for bad in (NAN, INF, "1", True, None)
        ),
    ],
    ids=str,
)
def test_an_impossible_part_of_the_reward_is_named(rewards, words):
    with pytest.raises(ValueError, match=words):
        preflight.check(changed("rl.rewards", rewards))


def test_all_bad_knobs_are_named_at_once():
    config = intervention.get_config("tiny")
    config.update(slots=-1, rl={"group": 1}, eval={"samples": 0})
    with pytest.raises(ValueError, match=r"config\.slots") as error:
        preflight.check(config)
    assert [line.split(" = ")[0] for line in str(error.value).splitlines()] == [
        *("config.slots", "config.rl.group", "config.eval.samples")
    ]


# --- lengths ---


def check_lengths(tokenizer, tasks, test, positions: int = 512, **changes) -> None:
    """Of a run of int.py:tiny on a model of so many positions, before any model is made."""
    config = intervention.get_config("tiny")
    config.update(changes)
    engine = types.SimpleNamespace(max_len=positions, decode_params=lambda params: params)
    lm = types.SimpleNamespace(engine=engine, params={})
    lab = build.lab(config, 0, lm, None, arithmetic.Arithmetic(tokenizer), tasks, None)
    preflight.check_lengths(config, lab, test)


@pytest.fixture(scope="module")
def tasks(domain):
    return domain.tasks("hard_train", 0, 20)


@pytest.fixture(scope="module")
def prompts(domain, tasks):
    """Tokens of the prompts that show the problem alone, and those that show the reference, too."""
    return {
        role: [len(domain.tokenizer.render(domain.view(task, [], role))) for task in tasks]
        for role in ("solver", domain.proposal_roles[0])
    }


def test_rows_that_a_response_cannot_fit_into(tokenizer, tasks, prompts):
    longest = max(prompts["solver"])
    check_lengths(tokenizer, tasks, [], train={"row_length": longest + 96})
    short = {"row_length": longest + 95}
    with pytest.raises(
        StageError, match=rf"row_length = {longest + 95} is too short: .* has {longest} tokens"
    ):
        check_lengths(tokenizer, tasks, [], train=short)
    check_lengths(tokenizer, [], tasks, train=short)  # these are not trained on
    # A response ends with the model's positions, so a row that holds them all holds any.
    check_lengths(tokenizer, tasks, [], 250, train={"row_length": 250}, rl={"max_new_tokens": 4_000})


def test_problems_that_the_model_has_no_place_for(tokenizer, tasks, prompts):
    longest = max(prompts["solver"])
    for train, test in ((tasks, []), ([], tasks)):
        with pytest.raises(StageError, match=rf"has {longest} tokens, and the model has {longest} pos"):
            check_lengths(tokenizer, train, test, longest)
    check_lengths(tokenizer, [], tasks, longest + 1)


def test_proposals_that_leave_no_room_for_any_prompt(tokenizer, domain, tasks, prompts):
    """One that has room is enough: the others are counted and dropped."""
    shortest = min(prompts[domain.proposal_roles[0]])
    positions = shortest + 128  # of which a response may take 128
    check_lengths(tokenizer, tasks, [], positions)
    words = rf"max_new_tokens = {{}} leave {shortest - 1} .* shortest of 20 has {shortest} tokens"
    longer = {"proposals": {"sampling": {"max_new_tokens": 513 - shortest}}}
    for said, some, changes in (
        (words.format(128), positions - 1, {}),
        (rf"max_prompt = {shortest - 1}", 512, {"proposals": {"max_prompt": shortest - 1}}),
        (words.format(513 - shortest), 512, longer),
    ):
        with pytest.raises(StageError, match=said):
            check_lengths(tokenizer, tasks, [], some, **changes)
    # Nobody is asked: no interventions, the oracle's, those of a file.
    check_lengths(tokenizer, tasks, [], arms=("rl",), **longer)
    longer["proposals"] |= {"proposer": "oracle", "compare": ()}
    check_lengths(tokenizer, tasks, [], **longer)
    given = {
        "inputs": {"proposals": "mine.jsonl"},
        "proposals": {**longer["proposals"], "proposer": "self_verify"},
    }
    check_lengths(tokenizer, tasks, [], **given)


def test_a_proposal_as_long_as_the_models_positions(tiny_dir):
    """Before the weights are read: config.json is enough."""
    config, mesh = intervention.get_config("tiny"), make_mesh(1, 1, jax.devices()[:1])
    config.model = str(tiny_dir)
    said = preflight.planned(config, mesh)
    assert said.startswith("1 x cpu: mesh 1 x 1, slots 128, train.rows 8\nmemory plan")
    positions = hf_format.read_config(tiny_dir, "float32").max_len
    config.proposals.sampling.max_new_tokens = positions
    with pytest.raises(
        ValueError, match=rf"max_new_tokens = {positions} leaves no room .* {positions} positions"
    ):
        preflight.planned(config, mesh)


def test_slots_that_the_mesh_does_not_divide():
    config = intervention.get_config("tiny")
    config.slots = 30
    with pytest.raises(ValueError, match=r"config\.slots = 30 is not a multiple .* axis, 4: set it to 32"):
        preflight.planned(config, make_mesh(4, 2))


def test_a_kernel_for_other_devices():
    config = intervention.get_config("tiny")
    config.attention = "tpu"
    with pytest.raises(
        ValueError, match=r"config\.attention = 'tpu' is a kernel for other devices than these, cpu"
    ):
        preflight.planned(config, make_mesh(4, 2))


@pytest.mark.parametrize("script", ["run", "evaluate"])
@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ({}, [str(memory.GPU_SHARE), None]),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, ["0.5", None]),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, [None, "0.5"]),  # with both jax refuses to start
    ],
    ids=str,
)
def test_the_share_of_a_gpu_is_said_before_jax_is_imported(script, told, seen):
    program = (
        "import sys, os, json, importlib.abc\n"
        "class Seen(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'jax':\n"
        "            names = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'\n"
        "            print(json.dumps([*map(os.environ.get, names)]))\n"
        "            sys.stdout.flush()\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Seen())\n"
        f"import experiments.{script}\n"
    )
    env = {name: value for name, value in os.environ.items() if "MEM_FRACTION" not in name} | told
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, check=True)
    assert json.loads(done.stdout) == seen
