"""Whole runs on conversations with the embedded model, in processes of their own, as a user starts them."""

import json

import pytest
from test_run import results, run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["therapy", "dearman"])
def test_a_whole_run_in_small(tmp_path, name):
    """Every stage; shards that are gone are made again, and it ends with the same numbers."""
    config = f"experiments/configs/{name}.py:smoke"
    code, out, err = run(tmp_path / "whole", config=config)
    assert code == 0, err[-3000:]
    found = results(tmp_path / "whole")
    assert (
        found["conversations"]
        and {"base", "int", "int_rl", "rl"} <= found["eval"].keys() | found["stopped"].keys()
    )
    assert 0 <= found["eval"]["base"]["score"]["mean"] <= 1
    assert found["measures"].keys() == found["eval"].keys() - found["stopped"].keys()
    assert found["scores"].keys() == found["measures"].keys() and "HOW IT SPEAKS" in out
    gains = found["intervention_gain"]
    assert {"self_verify", "oracle", "random_step", "last_step"} == gains.keys()
    assert gains["oracle"]["mean"] > 0 and "WHAT AN INTERVENTION GAINS" in out
    exact = found["proposers"]["oracle"]
    assert exact["exact"] == exact["located"] > 0
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "with respect to the script" in page
    # What a run has done stays: only what is missing is made again.
    again = tmp_path / "whole"
    for stage in ("gain", "guided", "eval_base"):
        for shard in (again / stage).glob("*.jsonl"):
            shard.unlink()
    code, _, err = run(again, config=config)
    assert code == 0, err[-3000:]
    assert json.dumps(results(again)) == json.dumps(found)
