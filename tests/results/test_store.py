"""What was run is not run again; what is stale or was cut off is."""

import ast
import multiprocessing

from serve_app.results import fingerprint
from serve_app.results.fingerprint import digest_of, digest_of_modules, imports_of
from serve_app.results.store import Store


def test_entries_are_found_again_and_by_others(tmp_path):
    path = tmp_path / "deep" / "runs.jsonl"
    one, other = Store(path), Store(path)
    assert one.get("a") is None
    one.put("a", {"joules": 1.5})
    other.put("b", {"joules": 2.5})
    assert other.get("a")["joules"] == 1.5
    assert one.get("b")["joules"] == 2.5
    assert Store(path).get("a")["joules"] == 1.5


def test_a_line_that_was_cut_off_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a", "joules": 1}\n{"key": "b", "jou')
    store = Store(path)
    assert store.get("a")["joules"] == 1
    assert store.get("b") is None
    store.put("c", {"joules": 3})
    assert Store(path).get("c")["joules"] == 3
    assert Store(path).get("a")["joules"] == 1


def _write(path, name):
    store = Store(path)
    for count in range(200):
        store.put(f"{name}{count}", {"text": name * 500})


def test_two_processes_write_whole_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_write, args=(path, name)) for name in "xy"]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    store = Store(path)
    assert all(store.get(f"{name}{count}") for name in "xy" for count in range(200))


def test_a_policy_depends_on_what_it_imports_and_on_nothing_else(monkeypatch):
    assert "policies.joint.fleet" in imports_of("policies.energy_slo")
    before = {name: digest_of((name,)) for name in ("energy_slo", "ray_default", "only")}
    code = fingerprint._code
    changed = "policies.joint.fleet"
    monkeypatch.setattr(fingerprint, "_code", lambda n: code(n) + "#" * (n == changed))
    fingerprint.digest_of_modules.cache_clear()
    try:
        assert digest_of(("energy_slo",)) != before["energy_slo"]
        assert digest_of(("only", "energy_slo")) != before["only"]
        assert digest_of(("ray_default",)) == before["ray_default"]
    finally:
        fingerprint.digest_of_modules.cache_clear()


def test_words_and_layout_make_nothing_stale(monkeypatch):
    text = '"""Old."""\n\ndef f(x):\n    """Says."""\n    return x + 1  # more\n'
    trees = {
        "a": text,
        "b": "def f(x):\n    return (x\n            + 1)\n",
        "c": "def f(x):\n    return x + 2\n",
    }
    monkeypatch.setattr(fingerprint, "_tree", lambda name: ast.parse(trees[name]))
    assert fingerprint._code("a") == fingerprint._code("b") != fingerprint._code("c")


def test_the_simulator_is_part_of_every_digest():
    assert len(digest_of_modules(("policies.sim.kernel",))) == 16
    assert digest_of(("static_peak",)) != digest_of(("wva",))
