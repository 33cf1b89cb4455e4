"""gs://: what is on a disk and what is in a bucket behave alike, whoever writes there and whenever it is killed.

The bucket is an emulator's (buckets.py); what it does not show is how Google's own differs from it.
"""

import gzip
import itertools
import json
import subprocess
import sys
import time

import buckets
import fsspec
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sessions import Dice
from test_checkpoint import save, small_state
from test_lora import ALL, CONFIGS, adapted, fresh
from test_response_log import held, opened
from test_run import ROOT, command, environment, parameters, results, run
from trees import assert_same

import int_jax
from int_jax import checkpoint, disk, hf_format, peft_format, report
from int_jax.datasets import sources
from int_jax.report import writers
from int_jax.response_log import LoggedSampler, ResponseLog
from int_jax.sampler import Request, Response, Sampling
from int_jax.stages import Awaited, Share, StageError, Workdir, stage_files, write_atomically

# aiohttp's, of an object of more than 1 MB.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
FOLDERS = itertools.count()


@pytest.fixture(scope="module")
def bucket():
    with buckets.serving() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        disk._storage.cache_clear()
        yield f"gs://{buckets.BUCKET}"
        disk._storage.cache_clear()
        fsspec.filesystem("gcs").clear_instance_cache()


@pytest.fixture
def at(bucket):
    """A folder of the bucket that is no other test's."""
    return disk.place(f"{bucket}/runs/{next(FOLDERS)}")


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else request.getfixturevalue("at")


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """No test leaves a folder "gs:" where it runs."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert not [*here.iterdir()]


def elsewhere(path, content: str) -> None:
    """Another machine writes an object."""
    other = fsspec.filesystem("gcs", skip_instance_cache=True, use_listings_cache=False)
    other.pipe_file(str(path), content.encode())


def names(paths, folder) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_files_are_written_listed_and_removed_alike(folder):
    some = {"a.txt": "1", "b/c.jsonl": "2\n", "b/d/e.jsonl": "3\n", "b/d/f.txt": "4"}
    for name, text in some.items():
        write_atomically(folder / name, text)
    assert names(disk.below(folder), folder) == sorted(some)
    assert names(disk.found(f"{folder}/b/*.jsonl"), folder) == ["b/c.jsonl"]
    assert names(disk.found(f"{folder}/**/*.jsonl"), folder) == ["b/c.jsonl", "b/d/e.jsonl"]
    assert disk.found(f"{folder}/x*") == []
    copy = disk.fetched(folder / "b")
    assert {name: (copy / name).read_text() for name in ("c.jsonl", "d/e.jsonl")} == {
        "c.jsonl": "2\n",
        "d/e.jsonl": "3\n",
    }
    assert disk.fetched(folder / "a.txt").read_text() == "1"
    for _ in range(2):
        disk.append(folder / "b/c.jsonl", "ä\n")
    disk.append(folder / "b/new", "n")
    assert (folder / "b/c.jsonl").read_text(encoding="utf-8") == "2\nä\nä\n"
    disk.remove(folder / "b/d")
    disk.remove(folder / "a.txt")
    disk.remove(folder / "nowhere")
    assert names(disk.below(folder), folder) == ["b/c.jsonl", "b/new"]
    assert (folder / "b").is_dir() and not (folder / "b/d").exists()


def test_of_two_that_write_a_first_file_one_wins(folder):
    path = folder / "manifest.json"
    write_atomically(path, "mine", first=True)
    write_atomically(path, "yours", first=True)
    assert path.read_text() == "mine"
    write_atomically(path, "ours")
    assert path.read_text() == "ours"


def test_a_folder_is_published_with_the_last_file_last(folder, tmp_path, monkeypatch):
    """While files change, the one without which nothing loads it is not there."""
    target, seen = folder / "model", []
    for content in "12":
        with disk.draft(target) as draft:
            for name in ("config.json", f"weights{content}", "tokenizer"):
                (draft / name).write_text(content)
            old = [*target.glob("weights*")]
            disk.publish(draft, target, "config.json", old)
        assert names(disk.below(target), target) == ["config.json", "tokenizer", f"weights{content}"]
        assert not draft.exists()
    send = disk.send
    monkeypatch.setattr(
        disk, "send", lambda here, path: (seen.append((target / "config.json").exists()), send(here, path))
    )
    with disk.draft(target) as draft:
        for name in ("config.json", "weights3"):
            (draft / name).write_text("3")
        disk.publish(draft, target, "config.json")
    assert not any(seen)


# Runs -------------------------------------------------------------------------------------------------------


def rows_of(path, share=None, made=None):
    """The rows of a stage of four shards; the numbers of those that this job makes go into `made`."""
    work = Workdir(path, {"a": 1}, {"jax": "0"}, share=share)

    def draw(some, lap):
        lap()
        if made is not None:
            made.extend(some)
        return [([{"n": n}], {"tokens": n}) for n in some]

    return work.rows("stage", [0, 1, 2, 3], draw)


def test_a_stage_is_made_once(folder):
    made: list[int] = []
    wanted = ([{"n": n} for n in range(4)], {"tokens": 6})
    for _ in range(2):
        assert rows_of(folder, made=made) == wanted
    assert made == [0, 1, 2, 3]
    assert Workdir(folder, {"a": 1}, {"jax": "0"}).wall_s().keys() == {"stage"}
    with pytest.raises(StageError, match="a: 1 there, 2 now"):
        Workdir(folder, {"a": 2}, {})
    assert names(stage_files(str(folder / "stage")), folder) == [f"stage/0000{n}.jsonl" for n in range(4)]
    assert len(stage_files(f"{folder}/stage/0000[12].jsonl")) == 2


def test_jobs_that_share_see_what_the_others_wrote(at):
    made: list[int] = []
    with pytest.raises(Awaited, match="2 of 4"):
        rows_of(at, Share(0, 2), made)
    shards = {name: (at / "stage" / name).read_text() for name in ("00000.jsonl", "00002.jsonl")}
    assert made == [0, 2] and len(shards) == 2
    # What this process has listed before another machine writes.
    assert not (at / "stage" / "00001.jsonl").exists() and len(disk.below(at / "stage")) == 2
    other = at.parent / f"{at.name}-other"
    with pytest.raises(Awaited):
        rows_of(other, Share(1, 2))
    for name in ("00001.jsonl", "00003.jsonl"):
        elsewhere(at / "stage" / name, (other / "stage" / name).read_text())
    assert rows_of(at, made=made)[0] == [{"n": n} for n in range(4)] and made == [0, 2]


def test_a_damaged_shard_is_named_by_its_address(at):
    rows_of(at)
    elsewhere(at / "stage" / "00002.jsonl", (at / "stage" / "00002.jsonl").read_text()[:-3])
    with pytest.raises(StageError, match=r"gs://.*00002.jsonl.*damaged.*delete gs://"):
        rows_of(at)
    disk.remove(at / "stage" / "00002.jsonl")
    made: list[int] = []
    assert len(rows_of(at, made=made)[0]) == 4 and made == [2]


def responses(count: int) -> list[tuple[bytes, int, Response]]:
    rng = np.random.default_rng(0)
    return [
        (
            bytes([n] * 16),
            2,
            Response(
                np.array([0, 1, *rng.integers(0, 99, n)], np.int32),
                np.array([0, 0, *rng.normal(size=n)], np.float32),
                "stop",
            ),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(("every_s", "kept"), [(0, 5), (1e9, 0)])
def test_what_was_sent_outlives_a_kill(at, every_s, kept):
    """Every `log_every` seconds the log is sent; what came since then is drawn again."""
    some = responses(6)
    with opened(at, every_s=every_s) as log:
        for one in some[:5]:
            log.add([one])
        log.path = at / "nowhere"  # killed: what its end would send does not come
    with opened(at, every_s=every_s) as again:
        assert held(again, some) == [True] * kept + [False] * (6 - kept)
        again.add([some[5]])
    assert held(opened(at), some) == [True] * kept + [False] * (5 - kept) + [True]


def test_a_log_at_an_address_is_that_of_a_disk(at, tmp_path):
    some = responses(6)
    for folder in (at, tmp_path / "log"):
        for part in (some[:2], some[2:]):
            with opened(folder) as log:
                log.add(part)
    assert (at / "0.log").read_bytes() == (tmp_path / "log" / "0.log").read_bytes()


def test_nothing_is_drawn_again_that_is_in_the_log(at):
    sampling = Sampling(max_new_tokens=8, stop_ids=(3,))
    requests = [Request((1, 2, n), "task", n) for n in range(5)]

    def drawn(sampler):
        with ResponseLog(at, "x", 1e9) as log:
            session = LoggedSampler(sampler, log).session(None, sampling)
            session.add(requests)
            found = {}
            while session:
                found |= dict(session.take())
        return {n: one.tokens.tolist() for n, one in found.items()}

    first, second = Dice(), Dice()
    assert drawn(first) == drawn(second)
    assert len(first.asked) == 5 and not second.asked


def test_a_checkpoint_comes_back_and_the_newest_alone_stays(at):
    save(at / "state", 1, 2)
    save(at / "state", 3)
    assert checkpoint.saved(at / "state") == [3]
    assert_same(checkpoint.restore(at / "state", small_state(0)), small_state(3))
    assert checkpoint.restore(at / "nothing", small_state(0)) is None


def test_a_checkpoint_that_was_not_finished_is_none(at):
    """A kill before its last file."""
    save(at / "state", 1, 2, keep=checkpoint.Keep(2))
    disk.remove(at / "state" / "2" / "commit_success.txt")
    assert checkpoint.saved(at / "state") == [1]
    assert_same(checkpoint.restore(at / "state", small_state(0)), small_state(1))
    save(at / "state", 2)
    assert checkpoint.saved(at / "state") == [2]
    assert_same(checkpoint.restore(at / "state", small_state(0)), small_state(2))


def test_a_damaged_checkpoint_is_named_by_its_address(at):
    save(at / "state", 1)
    disk.remove(at / "state" / "1" / checkpoint.COMPLETE)
    with pytest.raises(FileNotFoundError, match=r"gs://.*/state/1: no whole checkpoint"):
        checkpoint.restore(at / "state", small_state(0))


# Models and data --------------------------------------------------------------------------------------------


def test_a_model_is_saved_and_loaded(at, tiny_dir, tmp_path):
    lm = int_jax.load(tiny_dir)
    for _ in range(2):  # over what is there, too
        hf_format.save(at / "model", lm.model.config, lm.params, tiny_dir)
    hf_format.save(tmp_path / "model", lm.model.config, lm.params, tiny_dir)
    assert {
        name: (at / "model" / name).read_bytes() for name in names(disk.below(at / "model"), at / "model")
    } == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    again = int_jax.load(str(at / "model"))
    assert_same(again.params, lm.params)
    with pytest.raises(FileNotFoundError, match=r"gs://.*/nowhere: there is no such directory"):
        int_jax.load(str(at / "nowhere"))


def test_adapters_are_saved_and_loaded(at):
    config, params = CONFIGS["qwen3"], fresh(CONFIGS["qwen3"])
    tree = adapted(params, ALL)
    peft_format.save(at / "adapter", config, tree, "owner/name")
    again = peft_format.load(at / "adapter", config, params)
    assert_same(*(jax.tree.map(np.asarray, one) for one in (again, tree)))


def test_data_is_read(folder):
    rows = [{"question": f"{n}", "answer": n} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), table)
    write_atomically(folder / "train.jsonl", text)
    write_atomically(folder / "test.jsonl", text[:1])
    write_atomically(folder / ".cache" / "train.jsonl", "no JSON")
    write_atomically(folder / "more" / "a.jsonl.gz", gzip.compress(text.encode()))
    write_atomically(folder / "table" / "a.parquet", table.getvalue().to_pybytes())
    for source in ("train.jsonl", "more/*.gz", "table"):
        assert [row.columns for row in sources.raw_rows(f"{folder}/{source}", "train")] == rows, source
    disk.remove(folder / "more")
    disk.remove(folder / "table")
    assert [row.columns for row in sources.raw_rows(str(folder), "train")] == rows
    with pytest.raises(StageError, match="nothing: no such file"):
        sources.files(str(folder / "nothing"), "train")


# Watching ---------------------------------------------------------------------------------------------------


def test_scalars_go_on_and_events_are_there(at):
    for start in (0, 2):
        with report.Scalars(at / "scalars", start, [writers.load("tensorboard")]) as scalars:
            for step in range(start, start + 3):
                scalars.write(step, {"loss": step + start / 10})
    lines = [json.loads(line) for line in (at / "scalars" / "scalars.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.2),
        (3, 3.2),
        (4, 4.2),
    ]
    # Named by the second.
    assert any("tfevents" in path.name and path.read_bytes() for path in disk.below(at / "scalars"))


def test_a_profile_is_sent(at):
    from int_jax.watching import Profile

    with Profile(at / "profile", 1, 1) as profile:
        for update in range(3):
            profile.before(update)
            jax.block_until_ready(jax.numpy.ones(3) + update)
    assert any(path.name.endswith(".xplane.pb") for path in disk.below(at / "profile"))


# Refusals ---------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(
        FileNotFoundError, match=r"gs://nowhere/run/manifest.json: cannot be written.*is there"
    ):
        Workdir("gs://nowhere/run", {}, {})


def test_without_gcsfs_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    disk._storage.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"needs gcsfs.*pip install -e '\.\[gcs\]'"):
        disk.place("gs://bucket/runs")
    disk._storage.cache_clear()


# A run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_is_that_of_a_disk(at, bucket, tmp_path):
    """The first kill comes with the first shard, the second with a checkpoint."""
    code, _, err = run(tmp_path / "disk")
    assert code == 0, err[-3000:]
    for awaited in ("attempts/00000.jsonl", "int/state/*/commit_success.txt"):
        with subprocess.Popen(command(at), cwd=ROOT, env=environment()) as process:
            while process.poll() is None and not disk.found(f"{at}/{awaited}"):
                time.sleep(0.2)
            assert process.poll() is None, "it ended before it was killed"
            process.kill()
    code, _, err = run(at)
    assert code == 0, err[-3000:]
    copy = disk.fetched(at)
    assert results(copy) == results(tmp_path / "disk")
    ours, theirs = parameters(copy), parameters(tmp_path / "disk")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    files = [
        {name for name in names(disk.below(one), one) if "/state/" not in name and "events" not in name}
        for one in (copy, tmp_path / "disk")
    ]
    assert files[0] == files[1]
