"""Trackers: what a run sent is read back to its last step, from the files that each one keeps."""
import json
import math
import os
import random
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from common import extra
from gptlab.all import *

STEPS = 23


def written(line):
    "A line as JSON, in which nan equals nan"
    return json.dumps(plain_value(line), sort_keys=True)


def wandb_files(folder):
    "The offline files of W&B, when its own process has closed them"
    extra('wandb').teardown()
    return sorted(folder.glob('wandb/offline-run-*/*.wandb'))


def trainer(callbacks, seed=0, **kw):
    set_seed(seed)
    cfg = GPTConfig(vocab_size=16, n_layers=1, n_heads=2, d_model=16, context_length=8, dropout=.1)
    model = GPT(cfg)
    rows = torch.randint(0, 16, (4, 2, 9))
    data = [dict(ids=r[:, :-1], targets=r[:, 1:]) for r in rows]
    opt = Opt(model, adamw(lr=1e-3))
    settings = dict(device='cpu', eval_every=10) | kw
    return Trainer(model, opt, data, data[:1], callbacks=callbacks, **settings)


class Kept(Backend):
    "Keeps all calls"
    def __init__(self): self.calls = []
    def open(self, config, name): self.calls.append(('open', config, name))
    def log(self, line, step): self.calls.append(('log', line, step))
    def close(self): self.calls.append(('close',))
    def steps(self): return [c[2] for c in self.calls if c[0] == 'log']


# ---- the files, read back

def test_the_lines_of_a_file(tmp_path):
    run = trainer([Tracker(JSONL(tmp_path), name='a')]).fit(STEPS)
    lines = [json.loads(line) for line in (tmp_path/'a.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [10, 20, 23]
    assert lines[0].pop('bpb') == 'nan'                           # these ids stand for no bytes
    assert lines[0] == {k: v for k, v in run.log[9].items() if k != 'bpb'}
    config = json.loads((tmp_path/'a.json').read_text())
    assert config == run_config(run) and config['run_id'] == run.info['run_id']
    assert config['groups'][0]['lr'] == 1e-3 != run.opt.param_groups[0]['lr']  # not the schedule's


def test_wandb_offline_file_holds_the_run_to_its_last_step(tmp_path):
    extra('wandb')
    run = trainer([Tracker(WandB('lab', tmp_path), name='a', every=1)]).fit(STEPS)
    file, = wandb_files(tmp_path)
    assert list(map(written, wandb_history(file))) == list(map(written, run.log))
    run.fit(STEPS+2)                                              # the same run to W&B
    files = wandb_files(tmp_path)
    assert len({f.name for f in files}) == 1
    assert written(wandb_history(files[-1])[-1]) == written(run.log[-1])


def test_wandb_keeps_name_and_settings(tmp_path):
    extra('wandb')
    from wandb.proto.wandb_internal_pb2 import Record
    from gptlab.trackers import _wandb_records
    trainer([Tracker(WandB('lab', tmp_path), name='readable')]).fit(1)
    file, = wandb_files(tmp_path)
    records = map(Record.FromString, _wandb_records(file.read_bytes()))
    made = next(r.run for r in records if r.WhichOneof('record_type') == 'run')
    config = {u.key: json.loads(u.value_json) for u in made.config.update}
    assert (made.display_name, made.project) == ('readable', 'lab')
    assert config['model']['d_model'] == 16 and config['groups'][0]['lr'] == 1e-3


def test_wandb_records_that_cross_blocks(tmp_path):
    extra('wandb')
    backend = WandB('lab', tmp_path)
    backend.open({}, 'long')
    for step in range(1, 400):
        backend.log(dict(text='y'*(200_000 if step == 9 else step*7 % 500), loss=1/step), step)
    backend.close()
    file, = wandb_files(tmp_path)
    history = wandb_history(file)
    assert [line['step'] for line in history] == list(range(1, 400))
    assert all(line['loss'] == 1/line['step'] for line in history)
    (tmp_path/'other').write_bytes(b'something else')
    with pytest.raises(ValueError, match='no offline file'): wandb_history(tmp_path/'other')


def test_event_file_holds_the_run_to_its_last_step(tmp_path):
    extra('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = trainer([Tracker(TensorBoard(tmp_path), name='a', every=1)]).fit(STEPS)
    events = EventAccumulator(str(tmp_path/'a'), size_guidance=dict(scalars=0, tensors=0)).Reload()
    numbers = {k for line in run.log for k, v in line.items() if k != 'step'}
    assert set(events.Tags()['scalars']) == numbers
    for key in numbers:
        want = [(line['step'], line[key]) for line in run.log if key in line]
        got = [(e.step, e.value) for e in events.Scalars(key)]
        assert [s for s, _ in got] == [s for s, _ in want]
        assert np.allclose([v for _, v in got], [v for _, v in want], rtol=1e-6, equal_nan=True)
    text, = events.Tensors('config/text_summary')
    assert '"d_model": 16' in text.tensor_proto.string_val[0].decode()


def test_event_files_hide_the_steps_that_are_repeated(tmp_path):
    extra('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for first, last, loss in (1, 9, 1.), (6, 12, 2.):
        backend = TensorBoard(tmp_path)
        backend.open({}, 'a')
        for step in range(first, last+1): backend.log(dict(loss=loss), step)
        backend.close()
    events = EventAccumulator(str(tmp_path/'a')).Reload()
    assert [(e.step, e.value) for e in events.Scalars('loss')] == [
        (i, 1. if i < 6 else 2.) for i in range(1, 13)]


def test_trackio_keeps_name_and_settings(tmp_path):
    code = f'''import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trackers import *
run = trainer([Tracker(TrackioRun('lab'), name='readable', every=1)]).fit(5)
import trackio
kept, = trackio.Api().runs('lab')
print(json.dumps([kept.name, kept.config['model']['d_model']]))
'''
    env = os.environ | dict(TRACKIO_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True,
                          timeout=300)
    assert '["readable", 16]' in done.stdout, done.stdout + done.stderr
    with sqlite3.connect(tmp_path/'lab.db') as db:
        steps = [s for s, in db.execute('select step from metrics order by step')]
    assert steps == [1, 2, 3, 4, 5]


# ---- when lines are sent

def test_each_line_is_sent_once_and_whole():
    kept = Kept()
    run = trainer([Tracker(kept, every=4)]).fit(STEPS)
    assert kept.steps() == [4, 8, 10, 12, 16, 20, 23]
    assert [c[0] for c in kept.calls] == ['open', *['log']*7, 'close']
    sent = {c[2]: c[1] for c in kept.calls if c[0] == 'log'}
    assert all('valid' in sent[s] for s in (10, 20, 23))
    for s, line in sent.items(): assert written(dict(step=s) | line) == written(run.log[s-1])


def test_a_run_that_goes_on_is_opened_again_and_repeats_nothing():
    kept = Kept()
    run = trainer([Tracker(kept, every=5)]).fit(5)
    run.fit(10)
    assert kept.steps() == [5, 10]
    assert [c[0] for c in kept.calls] == ['open', 'log', 'close']*2


def test_of_several_ranks_only_the_first_writes():
    kept = Kept()
    run = trainer([Tracker(kept)])
    run.ranks.rank = 1
    run.fit(STEPS)
    assert kept.calls == []


def test_a_run_that_fails_is_closed_with_its_last_line():
    kept = Kept()
    class Fails:
        def before_step(self, t):
            if t.step == 3: raise KeyError('mine')
    with pytest.raises(KeyError): trainer([Tracker(kept), Fails()]).fit(9)
    assert kept.steps() == [3] and kept.calls[-1] == ('close',)


# ---- what is for show never ends training

@pytest.mark.parametrize('method', ['open', 'log', 'close'])
def test_a_backend_that_fails_is_switched_off_and_said_once(method, capsys):
    def fails(self, *args): raise OSError('the disk is full')
    broken, kept = type('Broken', (Kept,), {method: fails})(), Kept()
    t = trainer([Tracker(broken, kept, every=1)])
    t.fit(3)
    t.fit(5)
    said = capsys.readouterr().out
    assert said.count('Broken is switched off: OSError: the disk is full') == 1
    assert kept.steps() == [1, 2, 3, 4, 5] and t.step == 5
    if method == 'log': assert broken.calls[-1] == ('close',)


def test_interrupts_are_no_errors_of_a_backend():
    class Stops(Kept):
        def log(self, line, step): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): trainer([Tracker(Stops(), every=1)]).fit(3)


@pytest.mark.parametrize('library, make', [('wandb', 'WandB'), ('tensorboard', 'TensorBoard')])
def test_a_missing_library_is_said_before_training(library, make, monkeypatch):
    from gptlab import trackers
    monkeypatch.setattr(trackers, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=rf'{library} is not installed: pip install'):
        vars(trackers)[make]()


def test_weights_are_equal_to_the_bit_with_trackers_and_without(tmp_path):
    extra('wandb')
    backends = [JSONL(tmp_path), TensorBoard(tmp_path), WandB('lab', tmp_path), Kept()]
    a, draws = trainer([Tracker(*backends, every=1)]).fit(4), (random.random(), torch.rand(()))
    b, alone = trainer([]).fit(4), (random.random(), torch.rand(()))
    assert draws == alone
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)


# ---- settings

@dataclass
class Settings:
    size: int = 3
    made: object = partial(MLP, act=gelu)


class Odd: "Nothing known"


@pytest.mark.parametrize('value, plain', [
    (None, None), (True, True), (1.5, 1.5), ((1, {2}), [1, [2]]), (Path('a/b'), 'a/b'),
    (torch.float16, 'torch.float16'), (torch.device('cpu'), 'cpu'), (torch.tensor(2.), 2.),
    (GPT, 'gptlab.model.GPT'), (gelu, 'gptlab.blocks.gelu'), (math.sqrt, 'math.sqrt'),
    (Settings(), dict(size=3, made=dict(call='gptlab.blocks.MLP', act='gptlab.blocks.gelu'))),
    (Odd(), f'{__name__}.Odd'), (torch.zeros(3), 'torch.Tensor')])
def test_plain_values(value, plain):
    assert plain_value(value) == plain and type(plain_value(value)) is type(plain)
    json.dumps(plain_value(value))


def test_numbers_that_are_not_finite_are_text_in_json(tmp_path):
    backend = JSONL(tmp_path)
    backend.open({}, 'a')
    backend.log(dict(loss=math.nan, norm=math.inf), 1)
    backend.close()
    assert json.loads((tmp_path/'a.jsonl').read_text()) == dict(step=1, loss='nan', norm='inf')


def test_names_can_be_read_and_are_files(tmp_path):
    assert run_name(trainer([], dir=tmp_path/'my run (2)')) == 'my-run-2'
    name = run_name(trainer([]))
    assert name.startswith('GPT-') and Path(name).name == name


def test_the_settings_tell_runs_apart():
    a, b = (run_config(trainer([], clip=c, accumulate=n)) for c, n in ((1., 1), (None, 2)))
    assert (a['clip'], b['clip'], a['accumulate'], b['accumulate']) == (1., None, 1, 2)
    assert not {'step', 'tokens', 'log', 'train'} & set(a) and not [k for k in a if k[0] == '_']
