"""The working directory of a run: what survives a kill, a full disk, a changed config, a bad file."""

import contextlib
import errno
import json
import os
import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import int_jax
from int_jax import hf_format, peft_format, stages
from int_jax.checkpoint import Checkpoints
from int_jax.datasets import sources
from int_jax.report.results import Scalars
from int_jax.stages import Awaited, Matching, Share, StageError, Workdir, read_jsonl, write_atomically

CONFIG = {"seed": 1, "inputs": {}, "sft": {"epochs": 4, "rate": 1e-6}, "splits": ["a", "b"]}
VERSIONS = {"jax": "0"}


def workdir(**kwargs):
    return Workdir(**{"config": CONFIG, "versions": VERSIONS, **kwargs})


def square(calls):
    """A stage's work, which notes what it was called for."""

    def work(some, lap):
        calls.append(some)
        return [
            ([{"part": part, "square": part**2}, {"part": part}], {"rows": 2, "sum": part / 2})
            for part in some
        ]

    return work


# --- the config ---


def test_the_same_config_goes_on(tmp_path):
    workdir(path=tmp_path / "run")
    workdir(path=tmp_path / "run", config=json.loads(json.dumps(CONFIG)))
    workdir(
        path=tmp_path / "run", config={**CONFIG, "splits": ("a", "b")}, versions={"jax": "1"}
    )  # JSON's own equality


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ({**CONFIG, "seed": 2}, ["seed: 1 there, 2 now"]),
        (
            {**CONFIG, "sft": {"epochs": 8, "rate": 1e-5}},
            ["sft.epochs: 4 there, 8 now", "sft.rate: 1e-06 there, 1e-05 now"],
        ),
        ({**CONFIG, "new": None}, ["new: 'unset' there, None now"]),
        ({k: v for k, v in CONFIG.items() if k != "seed"}, ["seed: 1 there, 'unset' now"]),
        ({**CONFIG, "inputs": {"attempts": "x.jsonl"}}, ["inputs.attempts: 'unset' there, 'x.jsonl' now"]),
        ({**CONFIG, "splits": ["a"]}, ["splits: ['a', 'b'] there, ['a'] now"]),
    ],
)
def test_another_config_is_refused_with_every_differing_key_and_both_values(tmp_path, config, lines):
    workdir(path=tmp_path)
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(StageError) as error:
        workdir(path=tmp_path, config=config)
    said = [line.strip() for line in str(error.value).splitlines()]
    assert said[1:-1] == lines  # these and no others
    assert str(tmp_path) in said[0] and "--workdir" in said[-1]
    assert (tmp_path / "manifest.json").read_text() == before


def test_values_of_the_machine_may_change_and_each_start_notes_them(tmp_path):
    machine = {"mesh.data", "sft.rows", "later"}

    def start(versions=VERSIONS, **changes):
        sft = {"rows": 1, **CONFIG["sft"], **changes.pop("sft", {})}
        config = {**CONFIG, "mesh": {"data": 1}, **changes, "sft": sft}
        workdir(path=tmp_path, config=config, versions=versions, machine=machine)
        return json.loads((tmp_path / "manifest.json").read_text())

    first = {"changed": {}, "versions": VERSIONS}
    assert start()["starts"] == start()["starts"] == [first]  # nothing new
    second = {"changed": {"later": 3, "mesh.data": 4, "sft.rows": 2}, "versions": {"jax": "1"}}
    found = start({"jax": "1"}, mesh={"data": 4}, later=3, sft={"rows": 2})
    assert found["starts"] == [first, second] and found["config"]["mesh"] == {"data": 1}
    with pytest.raises(StageError) as error:
        start(mesh={"data": 2}, sft={"rows": 4, "epochs": 8})
    said = str(error.value)
    assert "sft.epochs: 4 there, 8 now" in said and "mesh" not in said and "rows" not in said
    assert start()["starts"] == [first, second, first]
    with pytest.raises(StageError, match=r"mesh\.data: 1 there, 2 now"):  # to whom nothing is the machine's
        workdir(path=tmp_path, config={**CONFIG, "mesh": {"data": 2}})


# --- shards ---


def test_rows_come_in_order_counts_are_summed_and_nothing_is_computed_twice(tmp_path):
    calls = []
    rows, totals = workdir(path=tmp_path).rows("stage", [3, 1, 2], square(calls))
    assert rows == [row for p in (3, 1, 2) for row in ({"part": p, "square": p**2}, {"part": p})]
    assert totals == {"rows": 6, "sum": 3.0} and calls == [[3, 1, 2]]  # one call for all that is missing
    again = workdir(path=tmp_path).rows("stage", [3, 1, 2], square(calls))
    assert again == (rows, totals) and len(calls) == 1
    assert not [path for path in (tmp_path / "stage").iterdir() if path.suffix != ".jsonl"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4))
def test_rows_come_back_as_they_were(tmp_path_factory, made):
    """Also with line separators of Unicode, quotes, and floats of any size in them."""
    run = workdir(path=tmp_path_factory.mktemp("run"))
    for _ in range(2):
        assert run.rows("stage", [0], lambda some, lap: [(made, {})]) == (made, {})


@pytest.mark.parametrize("stopper", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_call_writes_nothing_but_its_time(tmp_path, stopper):
    def work(some, lap):
        lap()
        raise stopper

    with pytest.raises(stopper):
        workdir(path=tmp_path).rows("stage", [0, 1], work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clock.jsonl", "manifest.json"]
    assert workdir(path=tmp_path).wall_s().keys() == {"stage"}


def by_share(calls):
    """A stage's work that knows what it counted over the whole call alone, and gives each part its share."""

    def work(some, lap):
        calls.append(some)
        total = sum(10 ** (part + 1) for part in some)
        shares = [total // len(some) + (index < total % len(some)) for index in range(len(some))]
        return [([{"part": part}], {"sum": share}) for part, share in zip(some, shares, strict=True)]

    return work


@pytest.mark.parametrize("stopper", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("files", range(7))
def test_a_kill_between_two_shards_changes_neither_rows_nor_counts(tmp_path, monkeypatch, stopper, files):
    """However many files are written by then, and however often it is killed there."""
    expected = workdir(path=tmp_path / "whole").rows("stage", [0, 1, 2, 3], by_share([]))
    run, calls, left = workdir(path=tmp_path / "run"), [], []

    def replace(one, other):
        if not left:
            raise stopper
        os.replace(left.pop() and one, other)

    monkeypatch.setattr(pathlib.Path, "replace", replace)
    for count in (files, 0, 1, 2):
        left[:] = [True] * count
        with contextlib.suppress(stopper):
            run.rows("stage", [0, 1, 2, 3], by_share(calls))
    monkeypatch.undo()
    assert workdir(path=tmp_path / "run").rows("stage", [0, 1, 2, 3], by_share(calls)) == expected
    missing = [len(some) for some in calls]
    assert missing == sorted(missing, reverse=True)  # a shard that exists is not made again
    for path in (tmp_path / "whole" / "stage").iterdir():
        assert (tmp_path / "run" / "stage" / path.name).read_text() == path.read_text()


# --- shares ---


def share(text, **kwargs):
    return workdir(share=Share.parse(text), **kwargs)


@pytest.mark.parametrize(
    "text", ["5/4", "4/4", "0/0", "x", "", "1", "1/", "/3", "-1/3", "1/3/4", "1.0/3", " 1/3"]
)
def test_a_share_that_is_none_is_refused_by_name(text):
    with pytest.raises(StageError, match=re.escape(f"--share={text}: it is I/N")):
        Share.parse(text)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.data())
def test_shares_make_each_shard_once_and_together_all(tmp_path_factory, parts, count, data):
    """In whatever order they come; who comes before all are there is told how many are."""
    run, calls, made = tmp_path_factory.mktemp("run"), [], set()
    parts = [*range(10, 10 + parts)]
    order = data.draw(st.permutations(range(count)))
    for index in [*order, *order]:
        mine, before = {*parts[index::count]}, len(calls)
        made |= mine
        job = share(f"{index}/{count}", path=run)
        if len(made) == len(parts):
            assert len(job.rows("stage", parts, square(calls))[0]) == 2 * len(parts)
        else:
            said = f"^stage: {len(made)} of {len(parts)} shards are there$"
            with pytest.raises(Awaited, match=said):
                job.rows("stage", parts, square(calls))
        assert calls[before:] in ([sorted(mine)], [])
    assert sorted(part for some in calls for part in some) == parts
    whole = workdir(path=run.with_name("whole-" + run.name)).rows("stage", parts, square([]))
    assert workdir(path=run).rows("stage", parts, square(calls)) == whole
    assert sum(map(len, calls)) == len(parts)


@pytest.mark.parametrize("files", range(1, 4))
@pytest.mark.parametrize("then", ["", "1/2"])
def test_a_share_that_was_killed_between_its_shards_counts_as_one_that_was_not(
    tmp_path, monkeypatch, files, then
):
    """Whether it goes on itself, or the run without shares makes what is left, with what others did not make."""
    parts, calls = [*range(7)], []
    # Each call counts for its shards together: those of a share, or all that the shares left.
    expected = sum(10 ** (part + 1) for part in parts)
    job, left = share("1/2", path=tmp_path), [True] * files

    def replace(one, other):
        if not left:
            raise KeyboardInterrupt
        os.replace(left.pop() and one, other)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            job.rows("stage", parts, by_share(calls))
    assert [path.name for path in (tmp_path / "stage").glob("counts*")] == ["counts.1of2.json"]
    if then:
        with pytest.raises(Awaited, match="3 of 7"):
            share(then, path=tmp_path).rows("stage", parts, by_share(calls))
    rows, totals = workdir(path=tmp_path).rows("stage", parts, by_share(calls))
    assert [row["part"] for row in rows] == parts and totals == {"sum": expected}
    assert not [*(tmp_path / "stage").glob("counts*")]


def test_a_share_writes_no_file_that_another_writes(tmp_path):
    """But for the first of manifest and data files, of which it leaves what is there."""
    jobs = [share(f"{index}/2", path=tmp_path) for index in range(2)]
    written = []
    for job in jobs:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
        job.pin({"inputs.a": []})
        job.clock("stage", 1.5)
        with contextlib.suppress(Awaited):
            job.rows("stage", [0, 1, 2], square([]))
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
        written.append({path.name for path, at in after.items() if before.get(path) != at})
    assert not written[0] & written[1]
    assert written[0] == {"files.json", "clock.0of2.jsonl", "00000.jsonl", "00002.jsonl"}
    assert workdir(path=tmp_path).wall_s()["stage"] >= 3.0  # of both
    assert jobs[0].own(tmp_path / "sampling.jsonl").name == "sampling.0of2.jsonl"


def test_a_share_notes_its_starts_beside_the_first_one(tmp_path):
    share("0/2", path=tmp_path)
    before = (tmp_path / "manifest.json").read_text()
    for _ in range(2):
        share("1/2", path=tmp_path, versions={"jax": "1"})
    assert (tmp_path / "manifest.json").read_text() == before
    starts = json.loads((tmp_path / "manifest.1of2.json").read_text())["starts"]
    assert [start["versions"]["jax"] for start in starts] == ["0", "1"]


def at_once(monkeypatch, other):
    """Let another job come between this one's look for a file and its writing it."""
    really = stages.write_atomically

    def write(path, content, first=False):
        monkeypatch.setattr(stages, "write_atomically", really)
        other()
        really(path, content, first)

    monkeypatch.setattr(stages, "write_atomically", write)


def test_of_two_first_starts_at_once_that_of_another_config_is_refused(tmp_path, monkeypatch):
    at_once(monkeypatch, lambda: share("0/2", path=tmp_path, config={**CONFIG, "seed": 2}))
    with pytest.raises(StageError, match="seed: 2 there, 1 now"):
        share("1/2", path=tmp_path)
    share("0/2", path=tmp_path, config={**CONFIG, "seed": 2})
    at_once(monkeypatch, lambda: share("0/2", path=tmp_path / "same"))
    share("1/2", path=tmp_path / "same")
    assert not [*tmp_path.rglob(".*")]


def test_of_two_first_starts_at_once_that_of_other_data_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("1")
    files = {"problems.train_file": [tmp_path / "a.jsonl"]}
    one, other = share("0/2", path=tmp_path / "run"), share("1/2", path=tmp_path / "run")
    at_once(monkeypatch, lambda: other.pin({"problems.train_file": []}))
    with pytest.raises(StageError, match=r"a\.jsonl: new \(config\.problems\.train_file\)"):
        one.pin(files)


@pytest.mark.parametrize("refused", stages.NO_LINKS)
def test_a_file_system_without_hard_links_has_runs_too(tmp_path, monkeypatch, refused):
    def link(*_):
        raise OSError(refused, "as such file systems do")

    monkeypatch.setattr(os, "link", link)
    share("0/2", path=tmp_path)
    with pytest.raises(StageError, match="seed: 1 there, 2 now"):
        share("1/2", path=tmp_path, config={**CONFIG, "seed": 2})


def test_stages_do_not_share_shards(tmp_path):
    run = workdir(path=tmp_path)
    assert run.rows("a", [1], square([]))[0] != run.rows("b", [2], square([]))[0]


def by_x(row: dict) -> tuple:
    return (row["x"],)


def own(folder, *lines: str, name="own.jsonl") -> str:
    (folder / name).write_text("".join(line + "\n" for line in lines))
    return str(folder / name)


def given_rows(folder, source: str, wanted):
    run = workdir(path=folder / "run", config={**CONFIG, "inputs": {"a": source}})
    return run.rows("a", [1, 2, 3], square([]), matching=Matching([(x,) for x in wanted], by_x))


def test_a_file_of_the_users_own_is_read_instead(tmp_path):
    source = own(tmp_path, '{"x": 1}', '{"x": 2}')
    assert given_rows(tmp_path, source, [1, 2]) == ([{"x": 1}, {"x": 2}], {})
    run, calls = workdir(path=tmp_path / "run", config={**CONFIG, "inputs": {"a": source}}), []
    assert len(run.rows("b", [1], square(calls))[0]) == 2 and calls == [[1]]
    with pytest.raises(StageError, match=r"config\.inputs\.a = .*own\.jsonl': the rows of this stage cannot"):
        run.rows("a", [1], square(calls))


@pytest.mark.parametrize(
    "lines",
    [
        ['{"x": 1}', '{"x": 2}', '{"x": 3}'],
        ['{"x": 2}', '{"x": 3}', '{"x": 1}'],  # turned by one
        ['{"x": 3}', '{"x": 2}', '{"x": 1}'],
        ['{"counts": {}, "rows": 3}', '{"x": 1}', '{"x": 2}', '{"x": 3}'],  # a shard
        [
            '{"counts": {}}',
            '{"x": 3}',
            '{"counts": {}, "rows": 2}',
            '{"x": 1}',
            '{"x": 2}',
        ],  # several, joined
        ["\ufeff" + '{"x": 1}', "", '{"x": 2}', " ", '{"x": 3}'],
    ],
)
def test_rows_are_matched_by_the_ids_they_carry(tmp_path, lines):
    rows, _ = given_rows(tmp_path, own(tmp_path, *lines), [1, 2, 3])
    assert rows == [{"x": 1}, {"x": 2}, {"x": 3}]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"x": 1}', '{"x": 2}'], ["own.jsonl: no row for 3"]),
        (
            ['{"x": 1}', '{"x": 2}', '{"x": 4}'],
            ["row 3: belongs to 4, which is not in this run", "no row for 3"],
        ),
        (['{"x": 1}', '{"x": 2}', '{"x": 3}', '{"x": 2}'], ["row 4: belongs to 2, as", "row 2 does"]),
        (['{"x": 1}', "", '{"y": 2}', '{"x": 3}'], ["row 3: no row of the stage a (KeyError: 'x')"]),
        (['{"x": "1"}', '{"x": 2}', '{"x": 3}'], ["row 1: belongs to 1, which is not in this run"]),
        ([], ["no row for 1", "no row for 2", "no row for 3"]),
        ([f'{{"x": {x}}}' for x in range(4, 20)], ["row 5: belongs to 8", "and 14 more"]),
        (['{"counts": {}}'], ["no row for 1"]),
        (["[1]"], ["line 1: not a record"]),
        (["[" * 100_000], ["line 1: not JSON"]),
    ],
)
def test_rows_that_do_not_match_are_named_by_file_and_row(tmp_path, lines, said):
    with pytest.raises(StageError, match=r"own\.jsonl") as error:
        given_rows(tmp_path, own(tmp_path, *lines), [1, 2, 3])
    for words in said:
        assert words in str(error.value)


def test_the_shards_of_another_run_are_rows_of_ones_own_too(tmp_path):
    """One of them, a folder or a glob of them; what they counted is counted."""
    made = {"counts": {"tokens": 5}, "rows": 1}
    for name, x in (("00000.jsonl", 2), ("00001.jsonl", 1)):
        own(tmp_path, json.dumps(made), json.dumps({"x": x}), name=name)
    for source in (str(tmp_path), str(tmp_path / "0000*.jsonl")):
        assert given_rows(tmp_path, source, [1, 2]) == ([{"x": 1}, {"x": 2}], {"tokens": 10})
        (tmp_path / "run" / "manifest.json").unlink()
    assert given_rows(tmp_path, str(tmp_path / "00001.jsonl"), [1]) == ([{"x": 1}], {"tokens": 5})
    for source in ("none.jsonl", "none*.jsonl", "run"):
        (tmp_path / "run" / "manifest.json").unlink()
        with pytest.raises(StageError, match="no such file" if source != "run" else r"no \*\.jsonl in it"):
            given_rows(tmp_path, str(tmp_path / source), [1])


# --- files from outside ---


def test_the_same_files_go_on(tmp_path):
    files = {"inputs.a": [tmp_path / "x"], "inputs.b": []}
    (tmp_path / "x").write_text("1")
    for _ in range(2):
        workdir(path=tmp_path / "run").pin(files)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, b: a.write_text("2"), r"a\.jsonl: changed \(config\.problems\.train_file\)"),
        (lambda a, b: a.write_text(a.read_text() + "\n"), r"a\.jsonl: changed"),
        (lambda a, b: b.unlink(), r"b\.jsonl: gone"),
        (lambda a, b: b.with_name("c.jsonl").write_text("3"), r"c\.jsonl: new"),
        (lambda a, b: b.rename(b.with_name("c.jsonl")), r"b\.jsonl: gone.*\n.*c\.jsonl: new"),
    ],
)
def test_data_that_changes_between_two_starts_is_noticed_and_named(tmp_path, change, said):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text("1"), b.write_text("2")

    def start():
        workdir(path=tmp_path / "run").pin({"problems.train_file": sorted(tmp_path.glob("*.jsonl"))})

    start()
    change(a, b)
    before = (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(StageError, match=rf"began with other data:\n.*{said}") as error:
        start()
    assert "Put the old files back, or use another --workdir" in str(error.value)
    assert (tmp_path / "run" / "manifest.json").read_text() == before


# --- damaged ---


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"config": 3}', "\0\0", '{"config": {"seed": 1']
)
def test_a_damaged_manifest_is_named_and_nothing_is_lost(tmp_path, text):
    rows = workdir(path=tmp_path).rows("stage", [1, 2], square([]))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(
        StageError, match=r"manifest\.json: damaged: .*delete that file and run the command again"
    ):
        workdir(path=tmp_path)
    (tmp_path / "manifest.json").unlink()  # as it says
    calls = []
    assert workdir(path=tmp_path).rows("stage", [1, 2], square(calls)) == rows and calls == []


@pytest.mark.parametrize(
    "damaged",
    [
        lambda text: "",
        lambda text: "\n",
        lambda text: "{}\n",
        lambda text: "[]\n",
        lambda text: text[: len(text) // 2],
        lambda text: "".join(text.splitlines(keepends=True)[:-1]),  # its last row is lost
        lambda text: "".join(text.splitlines(keepends=True)[1:]),  # its first line is
        lambda text: text[:-10] + "\0" * 10,
        lambda text: text.replace('"square": 4', '"square": 5'),  # a digit
        lambda text: text.replace('"sum": 1.0', '"sum": 1.5'),
    ],
)
def test_a_damaged_shard_is_named_and_alone_is_computed_again(tmp_path, damaged):
    rows = workdir(path=tmp_path).rows("stage", [1, 2], square([]))
    path = tmp_path / "stage" / "00001.jsonl"
    path.write_text(damaged(path.read_text()))
    with pytest.raises(
        StageError, match=r"stage/00001\.jsonl.*delete .*00001\.jsonl and run the same command"
    ):
        workdir(path=tmp_path).rows("stage", [1, 2], square([]))
    path.unlink()  # as it says
    calls = []
    assert workdir(path=tmp_path).rows("stage", [1, 2], square(calls)) == rows and calls == [[2]]


@pytest.mark.parametrize("line", ["{", "{}", '{"stage": "a"}', "3", '{"stage": "a", "sec'])
def test_a_damaged_clock_is_named(tmp_path, line):
    run = workdir(path=tmp_path)
    run.clock("a", 1.0)
    with (tmp_path / "clock.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StageError, match=r"clock\.jsonl"):
        run.wall_s()


# --- bad files ---


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5), st.sampled_from(["{", '{"a": 1', "nonsense", "{'a': 1}", '{"a": 1} {"b": 2}']))
def test_a_bad_line_is_named_with_file_and_line(tmp_path_factory, before, bad):
    path = tmp_path_factory.mktemp("x") / "rows.jsonl"
    path.write_text('{"a": 1}\n' * before + bad + "\n" + '{"a": 1}\n')
    with pytest.raises(StageError, match=rf"rows\.jsonl, line {before + 1}: not JSON"):
        list(read_jsonl(path))


def test_a_line_that_is_no_utf8_is_named_with_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(StageError, match=r"rows\.jsonl"):
        list(read_jsonl(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StageError, match=r"none\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


# --- a full disk ---


def full(code=errno.ENOSPC):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "target", [(os, "fsync"), (pathlib.Path, "replace"), (pathlib.Path, "mkdir")], ids=lambda t: t[1]
)
def test_a_full_disk_ends_in_one_message_and_leaves_what_was_finished(tmp_path, monkeypatch, code, target):
    run, calls = workdir(path=tmp_path), []
    run.rows("stage", [0], square([]))
    monkeypatch.setattr(*target, full(code))
    with pytest.raises(StageError, match=r"no space left on the disk.*run the same command again") as error:
        run.rows("stage", [0, 1], square(calls))
    monkeypatch.undo()
    assert str(tmp_path / "stage" / "00001.jsonl") in str(error.value) and error.value.__cause__ is None
    assert [p.name for p in (tmp_path / "stage").iterdir()] == ["00000.jsonl"]  # nothing half-written is left
    assert [r["part"] for r in workdir(path=tmp_path).rows("stage", [0, 1], square([]))[0]] == [0, 0, 1, 1]


def fill(monkeypatch) -> None:
    """From now on of what is written half finds room."""
    really = pathlib.Path.open

    def half(path, mode="r", *args, **kwargs):
        file = really(path, mode, *args, **kwargs)
        return file if mode.startswith("r") else Half(file)

    monkeypatch.setattr(pathlib.Path, "open", half)


def test_a_scalar_that_finds_no_room_says_so(tmp_path, monkeypatch):
    with Scalars(tmp_path) as scalars:
        scalars.write(1, {"loss": 2.0})
        fill(monkeypatch)
        with pytest.raises(
            StageError, match=r"scalars\.jsonl: no space left on the disk.*run the same command"
        ):
            scalars.write(2, {"loss": 1.0})
    monkeypatch.undo()
    with Scalars(tmp_path, 2) as scalars:
        scalars.write(2, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in (tmp_path / "scalars.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]


def test_what_says_more_of_a_full_disk_is_left_as_it_is(tmp_path):
    said = OSError(errno.ENOSPC, "the disk is full: x needs 3 MB")
    with pytest.raises(OSError, match="needs 3 MB"), stages.told_if_full(tmp_path):
        raise said
    with pytest.raises(StageError, match=f"{tmp_path}: no space left"), stages.told_if_full(tmp_path):
        full()()


def test_another_failure_of_the_disk_is_raised_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_atomically(tmp_path / "x", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", full())
    with pytest.raises(StageError):
        write_atomically(path, "new" * 10_000)
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomically(path, "é\n")
    assert path.read_text(encoding="utf-8") == "é\n" and [p.name for p in path.parent.iterdir()] == ["x"]


# --- the clock ---


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100)), max_size=60))
def test_time_adds_up_over_restarts(tmp_path_factory, spent):
    """To a tenth of a second, however many short pieces it is made of."""
    path = tmp_path_factory.mktemp("run")
    for stage, seconds in spent:
        workdir(path=path).clock(stage, seconds)
    got = workdir(path=path).wall_s()
    assert got.keys() == {stage for stage, _ in spent}
    for stage, seconds in got.items():
        assert seconds == pytest.approx(
            sum(s for name, s in spent if name == stage), abs=0.051 + 0.0005 * len(spent)
        )


def test_a_shard_that_exists_costs_no_time(tmp_path):
    workdir(path=tmp_path).rows("stage", [0, 1], square([]))
    before = (tmp_path / "clock.jsonl").read_text()
    workdir(path=tmp_path).rows("stage", [0, 1], square([]))
    assert (tmp_path / "clock.jsonl").read_text() == before and len(before.splitlines()) == 1


class Half:
    """A file that takes half of what is written to it; then the disk is full."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        full()()

    def close(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def test_a_disk_that_fills_up_within_a_write_costs_that_write_alone(tmp_path, monkeypatch):
    """A shard or a line of the clock: one message, and the next call goes on."""
    run = workdir(path=tmp_path)
    run.clock("a", 2.0)
    fill(monkeypatch)
    for call in (lambda: run.clock("a", 5.0), lambda: run.rows("stage", [0], square([]))):
        with pytest.raises(StageError, match="no space left on the disk"):
            call()
    monkeypatch.undo()
    again = workdir(path=tmp_path)
    again.clock("a", 3.0)
    assert again.wall_s()["a"] == 5.0
    assert len(again.rows("stage", [0], square([]))[0]) == 2


@pytest.mark.parametrize(
    "address", ["gs:/bucket/runs", "s3://bucket/runs", "hf://datasets/a/b", "file:///tmp/x"]
)
@pytest.mark.parametrize(
    "use",
    [
        lambda at: Workdir(at, {}, {}),
        lambda at: Checkpoints(at),
        lambda at: hf_format.save(at, None, {}),
        lambda at: peft_format.save(at, None, {}, "base"),
        lambda at: [*sources.raw_rows(at, "train")],
        lambda at: stages.stage_files(at),
        lambda at: int_jax.load(at),
    ],
    ids=["workdir", "checkpoints", "model", "adapters", "data", "rows", "load"],
)
def test_an_address_is_no_path(tmp_path, monkeypatch, use, address):
    """pathlib would make a folder "s3:" of it, here. gs:// is one: test_addresses.py."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (FileNotFoundError, StageError), match=r":/+.*an address, and a path or gs://... is needed; mount"
    ):
        use(address)
    assert not [*tmp_path.iterdir()]
