"""The race between small models: its budgets, what it says to wrong calls, and whether the results
that are kept obey the rules. No time is judged."""
import json
import subprocess

import pytest

from common import ROOT, benchmark

RESULTS = ROOT/'benchmarks'/'results'


@pytest.fixture
def race(monkeypatch, tmp_path):
    "benchmarks/race.py as a module whose results go to a folder of the test"
    with benchmark(monkeypatch, tmp_path, 'race') as module:
        monkeypatch.setattr(module, 'RESULTS', tmp_path)
        still = dict(gflops=1., load=0., cores=2)
        monkeypatch.setattr(module, 'calibrate', lambda: still)
        yield module


def kept(folder, name, **what): (folder/f'{name}.json').write_text(json.dumps(what))


# ---- budgets

@pytest.fixture
def measured(race, tmp_path):
    "A pace of 1,000 tokens a second, and three colds of 20 seconds in the median"
    shape = race.shape_of('gpt2', {})
    kept(tmp_path, 'race_pace', rows=[dict(entry='gpt2', tokens_per_second=1000., **shape)])
    kept(tmp_path, 'race_cold', rows=[dict(entry='gpt2', seconds=[20., 10., 90.])])
    return race


@pytest.mark.parametrize('budget,wanted', [
    (dict(tokens=6e5),                    dict(tokens=6e5)),
    (dict(seconds=100.),                  dict(seconds=100.)),
    (dict(paced=100.),                    dict(tokens=100_000)),
    (dict(paced=100., counted=True),      dict(tokens=80_000)),
    (dict(seconds=100., counted=True),    dict(seconds=80.))])
def test_a_budget_as_fit_takes_it(measured, budget, wanted):
    assert measured.in_tokens('gpt2', {}, budget) == wanted


def test_a_budget_shorter_than_compiling_is_an_error(measured):
    with pytest.raises(SystemExit, match='gpt2 compiles for 20 s, which leaves nothing of 20 s'):
        measured.in_tokens('gpt2', {}, dict(paced=20., counted=True))


@pytest.mark.parametrize('budget,command', [(dict(paced=9.), '--pace'),
                                            (dict(seconds=9., counted=True), '--cold')])
def test_what_was_not_measured_names_its_command(race, budget, command):
    with pytest.raises(SystemExit, match=f'race.py {command}'):
        race.in_tokens('gpt2', {}, budget)


def test_the_nearest_trials_decide(race, tmp_path):
    kept(tmp_path, 'race_tune', best=dict(gpt2=dict(lr=1.), ours=dict(lr=2.)))
    kept(tmp_path, 'race_tune_compiled_bf16', best=dict(gpt2=dict(lr=3.)))
    assert race.best_settings() == dict(gpt2=dict(lr=1.), ours=dict(lr=2.))
    race.COMPILED.update(on=True, bf16=True)
    assert race.best_settings() == dict(gpt2=dict(lr=3.), ours=dict(lr=2.))
    kept(tmp_path, 'race_tune_further_compiled_bf16', best=dict(gpt2=dict(lr=4.)))
    assert race.best_settings(100)['gpt2'] == dict(lr=3.)
    assert race.best_settings(200)['gpt2'] == dict(lr=4.)


def test_an_entry_that_does_not_compile_is_named_and_the_others_go_on(race, tmp_path, capsys,
                                                                      monkeypatch):
    def fresh(flag, name, *rest, **env):
        if name == 'llama': raise subprocess.CalledProcessError(1, 'race', stderr='no compiler')
        return 9.
    monkeypatch.setattr(race, 'fresh', fresh)
    race.measure_cold(dict(llama=None, gpt2=None))
    said = capsys.readouterr().err
    assert said.count('llama failed') == 1 and 'no compiler' in said
    rows = json.loads((tmp_path/'race_cold.json').read_text())['rows']
    assert rows == [dict(entry='gpt2', seconds=[9., 9., 9.])]


# ---- wrong calls

@pytest.mark.parametrize('call,said', [
    ('--tokens 9 --seconds 9', 'not in both'),
    ('--tokens 9 --paced', '--paced is about seconds'),
    ('--tokens 9 --counted --compile', '--counted is about seconds'),
    ('--seeds 0', '--seeds is at least 1'),
    ('--seconds -1', 'a budget is above 0'),
    ('--text stories --tune', '--text is of a race'),
    ('--entries nobody', 'invalid choice')])
def test_a_wrong_call_says_what_is_wrong(race, capsys, call, said):
    with pytest.raises(SystemExit) as err: race.main(call.split())
    assert err.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_clone_that_is_missing_is_named_and_the_others_run(race, tmp_path, capsys):
    (tmp_path/'nanochat').mkdir()
    call = '--tokens 8192 --rows --seeds 1 --text stories --entries nanochat gpt2 --nanochat '
    race.main([*call.split(), str(tmp_path/'nanochat')])
    assert 'nanochat does not run' in capsys.readouterr().err
    runs = json.loads((tmp_path/'race_tokens_8192_stories.json').read_text())['runs']
    assert [(r['entry'], r['tokens']) for r in runs] == [('gpt2', 8192)]


@pytest.mark.exhaustive
def test_a_race_is_a_table_and_goes_on_where_it_ended(race, tmp_path, capsys):
    call = '--tokens 16384 --rows --seeds 2 --text stories --entries ours gpt2'.split()
    race.main(call)
    file = tmp_path/'race_tokens_16384_stories.json'
    first = json.loads(file.read_text())
    assert [(r['entry'], r['seed']) for r in first['runs']] == [
        ('ours', 0), ('gpt2', 0), ('ours', 1), ('gpt2', 1)]
    assert 'gpt2' in first['tables']['rows'] and 'rows, bits per byte' in capsys.readouterr().out
    race.main(call)
    assert json.loads(file.read_text())['runs'] == first['runs']    # not run again


# ---- what is kept

def load(name): return json.loads((RESULTS/f'{name}.json').read_text())

RACES = sorted(p.stem for p in RESULTS.glob('race_paced_*.json') if not p.stem.endswith('_first'))

@pytest.mark.parametrize('name', RACES)
def test_a_kept_race_obeys_the_rules(race, name):
    """Three seeds for each entry, by its settings of the nearest trials; tokens as its pace, and
    its compiling, allow within a step"""
    race.COMPILED.update(on='compiled' in name, bf16='bf16' in name)
    race.RESULTS = RESULTS
    found = load(name)
    best = race.best_settings(found['budget']['paced'])
    seeds = {}
    for run in found['runs']:
        entry, settings = run['entry'], found['settings'].get(run['entry'], {})
        seeds.setdefault(entry, []).append(run['seed'])
        assert settings == best.get(entry, {}), entry
        wanted = race.in_tokens(entry, settings, found['budget'])['tokens']
        step = run['tokens']/run['steps']
        assert abs(run['tokens'] - wanted) <= step, (entry, run['tokens'], wanted)
    assert all(sorted(s) == [0, 1, 2] for s in seeds.values()), seeds
