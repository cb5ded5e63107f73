"""The scripts that measure the trainer and the optimizers, at tiny sizes: they run, compare what is
equal, and write their results. No time is judged."""
import json
import sys

import pytest

from common import benchmark


@pytest.fixture
def script(monkeypatch, tmp_path):
    "benchmarks/train.py as a module whose results go to a folder of the test"
    with benchmark(monkeypatch, tmp_path, 'train', 'optimizers') as module: yield module


def result(folder, name):
    found = json.loads((folder/f'{name}.json').read_text())
    assert {'date', 'cpu', 'cores', 'threads', 'torch', 'load', 'commit'} <= found['machine'].keys()
    return found


def test_the_trainer_computes_what_a_bare_loop_does(script, tmp_path, capsys):
    script.main('loop --size tiny --steps 8 --turn 2 --processor'.split())
    found = result(tmp_path, 'train_loop')
    low, high = found['interval']
    assert found['equal_weights'] and 0 < low <= found['ratio'] <= high
    assert found['clock'] == 'processor' and found['loss'][1] < found['loss'][0]
    assert 'goal 1.01' in capsys.readouterr().out


def test_a_save_holds_parameters_and_state(script, tmp_path):
    script.main(['save', '--save-size', 'tiny', '--saves', '2', '--dir', str(tmp_path)])
    found = result(tmp_path, 'train_save')
    assert len(found['rows']) == 2 and found['bytes'] > 12*found['parameters']
    assert 1 < found['size_ratio'] < 1.1
    assert [p.name for p in tmp_path.iterdir()] == ['train_save.json']   # the run is removed


def test_every_optimizer_has_its_row(script, tmp_path):
    script.main('optimizers --size tiny --rounds 3 --name mine'.split())
    rows = result(tmp_path, 'mine_optimizers')['rows']
    assert [r['rule'] for r in rows] == ['muon', 'muon in bfloat16', 'adamw', 'adamw, fused',
                                         'adamw, beside foreach']
    assert rows[1]['settings'][0]['precision'].startswith('bfloat16')
    assert rows[3]['settings'][0]['fused']


@pytest.mark.exhaustive
def test_every_rule_of_the_gallery_has_its_row(script):
    rows = sys.modules['optimizers'].measure('tiny', 2, 1, True, gallery=True)
    assert len(rows) == 11 and all(r['ratio'] > 0 for r in rows)
    assert rows[-1]['settings'][0]['rounding'] == 'stochastic'


def test_a_part_that_is_none_is_refused(script, capsys):
    with pytest.raises(SystemExit): script.main(['losses'])
    assert 'no part losses' in capsys.readouterr().err
