"""Every knob once, with its unit and where its value comes from. Other configs are a diff against this one.

"InT" is arXiv 2601.14209 and its released scripts; its values are for Qwen3-4B-Instruct-2507 and 16,384 tokens.
"""

from ml_collections import ConfigDict


def sampling(**changes) -> ConfigDict:
    """How responses are drawn: InT's 0.7 / 0.8 / 20 unless changed."""
    base = {"max_new_tokens": 16_384, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0}
    return ConfigDict({**base, **changes})


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.name = "default"
    c.seeds = (0,)  # one whole run each; the problems, samples and data order all follow the seed
    c.model = "int_jax/assets/tiny_arithmetic"  # a Hugging Face directory or hub id
    c.dtype = "float32"  # of the compute and of the sampler's weights; logits and losses are always float32
    c.param_dtype = (
        "float32"  # of the weights in training: bfloat16 ones lose updates below 1/256 of a weight
    )
    c.chat = ConfigDict()  # told to the chat template: {"enable_thinking": False} for Qwen3's hybrid models
    c.device_gib = (
        0.0  # memory of a device where it does not say so itself; 0: unknown, and nothing is refused
    )
    c.mesh = ConfigDict({"data": -1, "model": 1})  # devices along each axis, -1: what is left
    c.slots = 128  # rows of the sampler's cache
    c.chunk = 16  # tokens drawn between two looks of the host
    c.domain = ConfigDict({"name": "arithmetic", "knobs": ConfigDict()})
    c.export = ("int_rl",)  # policies written to workdir/models/NAME in Hugging Face format
    c.arms = ("int_rl", "rl")  # policies trained: int_rl (SFT, then RL), rl (RL from the base model)
    c.inputs = ConfigDict({"attempts": "", "proposals": "", "guided": ""})  # JSONL in place of a stage's rows
    # A source with attempts (and interventions) by columns, such as InT's published sets: the run enters behind them.
    # `filtered` says that its rows have passed the filter.
    c.enter = ConfigDict({"source": "", "split": "train", "filtered": False})

    c.problems = ConfigDict()
    c.problems.train = (
        4_500  # candidates, before those with a correct try are dropped (InT: about 4,500 after it)
    )
    c.problems.test = 1_352  # held-out candidates
    # Which of the two are cut down to hard problems, those without a right try in attempts.tries. Without "train" every
    # wrong attempt counts, as is right for problems that were chosen before (InT's published set: attempts.tries = 4).
    c.problems.hard = ("train", "test")
    # Problems with the columns problem, answer, reference_solution, in place of the domain's own: a file (JSONL or
    # Parquet), a folder or glob of them, "tfds:NAME", "huggingface:OWNER/NAME" (datasets.read).
    c.problems.train_file = ""
    c.problems.test_file = ""
    c.problems.train_file_split = "train"
    c.problems.test_file_split = "test"
    c.problems.skip_bad = False  # leave bad rows out, counted, instead of refusing the file
    c.problems.test_split = "hard_test"  # "hard_validation" while choosing knobs
    c.problems.shard = 64  # problems a shard: what a killed run has to do again at most

    c.attempts = ConfigDict()
    c.attempts.tries = 64  # samples a problem; a problem counts as hard if none is right (InT: 64 to 128)
    c.attempts.keep = 4  # wrong attempts kept of each problem (InT)
    c.attempts.sampling = sampling()

    c.proposals = ConfigDict()
    c.proposals.proposer = "self_verify"  # a module of int_jax/proposers
    c.proposals.model = ""  # another model than the policy: a Hugging Face directory or hub id
    c.proposals.chat = ConfigDict()  # as `chat`, for that model
    c.proposals.compare = ()  # more proposers, whose location accuracy is reported
    c.proposals.compare_attempts = 256  # attempts they are compared on
    c.proposals.samples = 4  # candidates an attempt: retries against parsing and leaks (InT)
    c.proposals.max_prompt = 30_000  # tokens; longer conversations are counted and dropped (InT cuts them)
    c.proposals.shard = 256  # attempts a shard
    c.proposals.sampling = sampling()

    c.guided = ConfigDict()
    c.guided.tries = 32  # continuations of a guided attempt (InT)
    c.guided.stop_at_success = True  # leave after the first success; False draws all tries (InT)
    c.guided.at_once = 8  # continuations a round
    c.guided.shard = 128  # guided attempts a shard
    c.guided.sampling = sampling()

    c.effect = ConfigDict()
    c.effect.problems = 334  # problems of the four-condition table, one attempt each (InT, Table 1)
    c.effect.samples = 32  # fresh samples a condition (InT)

    c.sft = ConfigDict()
    c.sft.epochs = 4  # InT, Table 6
    c.sft.batch = 64  # sequences an update (InT)
    c.sft.learning_rate = 1e-6  # peak; cosine to a tenth of it (InT)
    c.sft.warmup = 0.1  # share of the updates (InT)
    c.sft.weight_decay = 0.0
    c.sft.clip_norm = 1.0
    c.sft.prefix = 1.0  # weight of each prefix token (InT trains it; 0 is the ablation of Table 2)
    c.sft.intervention = 1.0  # weight of each intervention token
    c.sft.end_of_turn = False  # train the end-of-turn token after the intervention (InT: no)
    c.sft.filtered = True  # only guided attempts with a right continuation (InT)

    c.rl = ConfigDict()
    c.rl.updates = 400  # InT
    c.rl.problems = 32  # an update (InT, Table 5)
    c.rl.group = 8  # samples a problem (InT)
    c.rl.learning_rate = 1e-6  # constant (InT)
    c.rl.weight_decay = 0.01  # PipelineRL fork
    c.rl.clip_norm = 0.3  # PipelineRL fork
    c.rl.divide_by_std = False  # InT
    c.rl.normalise = "sequences"  # token sum over the number of sequences (fork); "tokens", "sequence_mean"
    c.rl.kl = 0.0  # weight of KL to the starting policy (InT)
    c.rl.clip_low = 4.0  # the ratio is clipped to [1 - low, 1 + high] (fork)
    c.rl.clip_high = 4.0
    c.rl.ratio = "token"  # "sequence" is GSPO
    c.rl.pool = "kept"  # problems trained on: "kept" by the filter (InT), or all "hard" ones
    c.rl.matched = True  # go on with RL alone until it has also spent the tokens of InT's data stages
    c.rl.temperature = 1.0  # paper; 0.8 in the fork: disputed
    c.rl.max_new_tokens = 16_384
    c.rl.checkpoint_every = 50  # updates (fork)

    c.eval = ConfigDict()
    c.eval.samples = 128  # a problem (InT)
    c.eval.ks = (1, 8)  # pass@k
    c.eval.train_problems = 256  # training problems evaluated beside the held-out ones
    c.eval.shard = 64  # problems a shard
    c.eval.sampling = sampling()

    c.train = ConfigDict()
    c.train.row_length = 20_000  # tokens of a packed row (fork)
    c.train.rows = 4  # rows of a micro-batch
    c.train.remat = True  # recompute each layer in the backward pass
    c.train.chunk = 512  # tokens of a row whose logits exist at one time
    return c
