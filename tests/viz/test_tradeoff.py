"""The picture of a search: every candidate, the budget, the front."""

from __future__ import annotations

import viz
from tests.viz.svgs import NAMESPACE, Picture


def trial(name, ms, drop, *, met=True, kept=False):
    return {"name": name, "ms": ms, "drop": drop, "met": met, "kept": kept, "reason": ""}


def search(trials, front=("fast <1>", "float"), max_drop=0.01):
    score = {"name": "top-1 agreement with the float model", "proxy": True}
    return {"trials": trials, "front": list(front), "max_drop": max_drop, "score": score}


TRIALS = [
    trial("float", 8.0, 0.0),
    trial("fast <1>", 2.0, 0.004, kept=True),
    trial("lost", 4.0, 0.3, met=False),
    trial("broken", 3.0, None, met=False),
]


def dots(picture):
    return {
        c.find(f"{NAMESPACE}title").text.split("\n")[0]: c for c in picture.root.iter(f"{NAMESPACE}circle")
    }


def test_every_candidate_stands_where_its_numbers_say():
    picture = Picture(viz.tradeoff(search(TRIALS)))
    found = dots(picture)
    assert {name: c.get("class") for name, c in found.items()} == {
        "float": "dot", "fast <1>": "chosen", "lost": "lost", "broken": "lost",
    }  # fmt: skip
    x = {name: float(c.get("cx")) for name, c in found.items()}
    y = {name: float(c.get("cy")) for name, c in found.items()}
    assert x["fast <1>"] < x["broken"] < x["lost"] < x["float"]
    assert y["float"] > y["fast <1>"] > y["lost"] > y["broken"]
    assert {"float", "fast <1>", "lost", "broken", "budget 0.01"} <= set(picture.texts)
    assert any("a proxy" in told for told in picture.texts)


def test_the_same_search_gives_the_same_bytes(tmp_path):
    path = tmp_path / "tune.svg"
    assert viz.tradeoff(search(TRIALS), path) == path.read_text() == viz.tradeoff(search(TRIALS))


def test_names_of_equal_candidates_do_not_overlap():
    same = [trial(f"candidate {i}", 2.0, 0.0) for i in range(4)]
    picture = Picture(viz.tradeoff(search(same, front=["candidate 0"])))
    heights = [
        float(t.get("y"))
        for t in picture.root.iter(f"{NAMESPACE}text")
        if (t.text or "").startswith("candidate")
    ]
    assert len({round(h) for h in heights}) == 4


def test_no_budget_and_no_trials_draw_too():
    assert "budget" not in " ".join(Picture(viz.tradeoff(search(TRIALS, max_drop=0))).texts)
    assert dots(Picture(viz.tradeoff(search([], front=[])))) == {}
