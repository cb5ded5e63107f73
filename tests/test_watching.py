"""Watching: what the views say, when they say it, and that nothing in them is markup, raises, or
makes the training wait."""
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gptlab import watching
from gptlab.all import *
from gptlab.checkpoints import run_lock
from gptlab.watching import LiveView, View, WidgetView, lines_read

HOSTILE = '<script>alert(1)</script>&"\'\x00\x1b]52;c;\x07\ud800 <img src=x onerror=alert(2)>'


def trainer(callbacks=(), n=4, **kw):
    set_seed(0)
    cfg = GPTConfig(vocab_size=257, n_layers=1, n_heads=2, d_model=16, context_length=16)
    train, valid = batches(['Once upon a time there was a cat. '*9]*20, ByteTokenizer(), B=2, T=16)
    model = GPT(cfg)
    settings = dict(device='cpu', eval_every=n) | kw
    return Trainer(model, Opt(model, adamw(lr=1e-3)), train, valid.head(1),
                   callbacks=list(callbacks), **settings)


def harmless(html):
    assert '<script' not in html and '<img src=x' not in html, html
    assert not set('\x00\x1b\x07\ud800') & set(html), html
    html.encode()


# ---- text that is not ours

def test_hostile_text_is_text_in_the_live_view(tmp_path):
    "R01: in samples, prompts, names, folders and what a trainer is doing"
    view = LiveView(every=0, prompt=HOSTILE, sample=lambda trainer, prompt: prompt + HOSTILE)
    run = trainer([view]).fit(4)
    run.dir = Path(HOSTILE.replace('/', '').replace('\x00', ''))
    run.doing = HOSTILE
    view.show(run)
    for part in (view.line, view.details, view.curve, view.text): harmless(part.value)
    assert '<b>&lt;script' in view.text.value                     # the prompt, bold
    run.doing = ''
    harmless(run._repr_html_())
    page = PageView(tmp_path/'run.html')
    page.show(run)
    harmless(page.path.read_text())


def test_hostile_text_reaches_no_terminal(tmp_path, capsys):
    "R01: what a run says, in lines, bars and errors of its callbacks"
    class Fails:
        for_show = True
        def after_step(self, trainer): raise ValueError(HOSTILE)
    run = trainer([Lines(), Fails()], n=2, dir=tmp_path/'a\x1b]0;b').fit(4)
    run.doing = HOSTILE
    Lines().show(run)
    bar = Bar()
    bar.before_fit(run)
    bar.show(run)
    bar.bar.close()
    run._say(HOSTILE)
    said = ''.join(capsys.readouterr())
    assert 'Fails failed' in said and '\\x1b]52;c;' in said
    assert not set('\x00\x1b\x07\ud800') & set(said)
    run.log, run.budget = [], None
    run.doing = HOSTILE
    assert '\x1b' not in status_line(run) + repr(run)
    run.save_soon = False
    with run_lock(tmp_path):
        (tmp_path/'.lock.json').write_text(json.dumps(dict(pid='\x1b[2J', host='h')))
        with pytest.raises(BlockingIOError) as e:
            with run_lock(tmp_path): pass
    assert '\x1b' not in str(e.value)


def test_hostile_text_is_text_in_a_picture():
    run = trainer().fit(4)
    run.sampler = lambda trainer: HOSTILE
    harmless(run._repr_html_())
    def fails(trainer): raise ValueError(HOSTILE)
    run.sampler = fails
    assert 'no sample could be made' in run._repr_html_()
    harmless(run._repr_html_())


def test_hostile_keys_of_a_log_are_text():
    svg = curve_svg({HOSTILE: ([1, 2], [2., 1.])})
    harmless(svg)
    run = trainer()
    run.callbacks = [After(lambda t: t.log[-1].update({HOSTILE: 1.}))]
    run.fit(4)
    run.budget = None
    harmless(run._repr_html_())
    harmless(curve_svg({k: run.series(k) for k in run.log[0]}))


class After:
    "Does something after each step"
    def __init__(self, do): self.after_step = do


# ---- odd runs

def views(folder):
    page = PageView(folder/'run.html')
    return [LiveView(every=0), WidgetView(every=0), Lines(), Bar(), View(), page]


def shown_everywhere(run, capsys, folder):
    "Every view shows the run, at every event; nothing is left out"
    for view in views(folder):
        if isinstance(view, Bar): view.before_fit(run)
        for event in EVENTS:
            if event == 'before_eval': run.doing = 'scoring the validation batches'
            if (f := getattr(view, event, None)): f(run)
    run._repr_html_()
    said = capsys.readouterr()
    assert 'failed' not in said.out + said.err
    return said


def test_a_run_without_a_log_is_shown(capsys, tmp_path):
    run = trainer()
    run.sampler = None
    shown_everywhere(run, capsys, tmp_path)
    assert status_line(run) == 'about to begin' and 'no budget' in run._repr_html_()


@pytest.mark.parametrize('steps', [1, 2])
def test_a_run_of_few_lines_is_shown(steps, capsys, tmp_path):
    run = trainer().fit(steps)
    shown_everywhere(run, capsys, tmp_path)
    assert '100%' in status_line(run) and ('<img' in run._repr_html_()) == (steps > 1)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_shown(bad, capsys, tmp_path):
    run = trainer().fit(6)
    for line in run.log[2:]: line.update(loss=bad, grad_norm=bad)
    run.log[-1].update(valid=bad, bpb=bad)
    shown_everywhere(run, capsys, tmp_path)
    assert f'loss {bad:.3f}' in status_line(run)
    for line in run.log: line['loss'] = bad
    shown_everywhere(run, capsys, tmp_path)


def test_a_run_without_validation_sampler_or_tokenizer_is_shown(capsys, tmp_path):
    run = trainer()
    run.valid, run.sampler, run.tok = None, None, None
    shown_everywhere(run.fit(3), capsys, tmp_path)


def test_views_leave_weights_and_random_numbers_alone():
    "Also the peak of the matrix product, which the live view measures"
    watching._peak.cache_clear()
    a = trainer([LiveView(every=0), Lines(), LayerStats(every=1)], n=2).fit(6)
    drawn = torch.rand(())
    b = trainer(n=2).fit(6)
    assert torch.equal(drawn, torch.rand(()))
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)
    assert watching._peak.cache_info().misses == 1


# ---- no waiting for the device

@pytest.fixture
def reads(monkeypatch):
    "Each read of a tensor"
    seen, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, 'item', lambda self: seen.append(1) or item(self))
    return seen


def test_no_view_reads_the_newest_lines(reads):
    run = trainer().fit(5)
    run.read_late = True
    for line in run.log[-2:]: line.update(loss=torch.tensor(2.), grad_norm=torch.tensor(1.))
    assert len(lines_read(run)) == 3
    reads.clear()
    line = status_line(run)
    view = LiveView(sample=lambda trainer: '')
    view.show(run)
    assert not reads and f'loss {run.log[2]["loss"]:.3f}' in line and 'step 5' in line
    for line in run.log: line['loss'] = torch.tensor(2.)
    assert lines_read(run) == [] and status_line(run) == 'about to begin' and not reads


def test_a_bar_speaks_only_when_it_moves(monkeypatch):
    said = []
    monkeypatch.setattr(watching, 'status_line', lambda trainer: said.append(1) or '')
    bar = Bar()
    bar.every = 1e9
    trainer([bar], n=0, eval_every=0).fit(30)
    assert len(said) < 6


# ---- nothing is silent for long

def test_what_lasts_is_said_before_it_begins(tmp_path):
    said = []
    class Kept(View):
        every = 1e9
        def show(self, trainer): said.append((trainer.step, trainer.doing))
    run = trainer([Kept()], n=2, dir=tmp_path).fit(3)
    scoring = 'scoring the validation batches'
    assert said == [(0, ''), (2, scoring), (2, ''), (3, 'saving'), (3, scoring), (3, ''),
                    (3, 'saving'), (3, '')]
    assert run.doing == ''


def test_the_live_view_says_that_it_writes_a_sample():
    seen = []
    view = LiveView(every=0, sample=lambda trainer: seen.append(view.line.value) or 'text')
    trainer([view], n=2).fit(4)
    assert all('writing a sample' in s for s in seen) and len(seen) == 2
    assert 'writing' not in view.line.value and view.text.value.endswith('>text</pre>')


def test_lines_say_what_lasts(tmp_path, capsys):
    lines = Lines()
    trainer([lines], n=2, dir=tmp_path).fit(4)
    said = [s for s in capsys.readouterr().out.splitlines() if s]
    parts = [s[:4] + s.partition(';')[2] if '%' in s else s for s in said]
    scoring = 'scoring the validation batches …'
    assert parts == [scoring, ' 50%', scoring, '100% saving']
    lines.slow = False
    trainer([lines], n=2).fit(3)
    said = capsys.readouterr().out.splitlines()
    assert [s[:4] for s in said] == [' 67%', 'scor', '100%']       # a fast one is not announced


def test_lines_speak_once_a_minute(capsys):
    lines = Lines()
    lines.every = 0
    trainer([lines], n=0, eval_every=0).fit(3)
    assert len(capsys.readouterr().out.splitlines()) >= 3


# ---- which view, and what stays of it

def test_without_ipywidgets_there_are_lines(monkeypatch, capsys):
    for name in ('IN_TEST', 'GPTLAB_SILENT'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(watching, 'in_kernel', lambda: True)
    assert type(default_watcher()) is LiveView
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    assert type(default_watcher()) is Lines
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and 'pip install ipywidgets' in said[0]


def test_the_default_sampler_gets_the_prompt_of_the_view():
    view = LiveView(prompt='Once')
    trainer([view]).fit(4)
    assert view.samples[-1][1].startswith('Once') and '<b>Once</b>' in view.text.value
    assert "from &#x27;Once&#x27;" in view.text.value


def test_a_picture_takes_the_place_of_the_view(monkeypatch):
    "U07: once in the cell that trained, whole in the next"
    shown, cell = [], ['first']
    class Place:
        def update(self, what): shown.append(what.data)
    monkeypatch.setattr(watching, 'in_kernel', lambda: True)
    monkeypatch.setattr(watching, '_running_cell', lambda: cell[0])
    monkeypatch.setattr('IPython.display.display', lambda box, display_id: Place())
    view = LiveView(every=0, sample=lambda trainer: f'sample {trainer.step}')
    run = trainer([view], n=2).fit(6)
    picture, = shown
    assert '<img' in picture and picture.count('<pre') == 3 and '<details>' in picture
    assert '<img' not in run._repr_html_() and 'Trainer at step 6' in run._repr_html_()
    cell[0] = 'second'
    assert run._repr_html_() == picture
    assert all(b.disabled for b in view.buttons)
    view.buttons[0].click()
    assert not run.stop                                           # it is over: nothing to stop


def test_a_page_does_not_sample_while_it_trains(tmp_path):
    run = trainer([PageView(tmp_path/'run.html', every=0)])
    def sampler(trainer): raise AssertionError('sampled')
    run.sampler = sampler
    run.fit(4)
    text = (tmp_path/'run.html').read_text()
    assert 'content="0"' in text and '100%, step 4' in text and 'sampled' not in text


def test_earlier_samples_are_few():
    view = LiveView(every=1e9, sample=lambda trainer: 'text')
    run = trainer([view], n=1).fit(60)
    assert len(view.samples) == 60 and run._repr_html_().count('<pre') < 12


def test_the_log_has_memory_and_utilization(monkeypatch):
    "Once the run has lasted two seconds; the measurement is outside of its clock"
    run = trainer(n=0, eval_every=0).fit(2)
    assert all('mfu' not in r for r in run.log) and run.log[0].get('memory', 1e6) > 1e5
    calls = []
    monkeypatch.setattr(watching, 'device_peak', lambda t: calls.append(time.sleep(.1)) or 1e9)
    run.seconds = 2.
    run.fit(5)
    assert len(calls) == 1                                        # and not in the log's time:
    assert run.seconds - 2 == pytest.approx(sum(64/r['tokens_per_second']/2 for r in run.log[2:]))
    flops = run.log[-1]['flops'] - run.log[-2]['flops']
    took = run.log[-1]['seconds'] - run.log[-2]['seconds']
    assert run.log[-1]['mfu'] == pytest.approx(flops/took/1e9)
    view = LiveView(every=0)
    view.peak = 1e9
    view.show(run)
    assert '(MFU)' in view.details.value


def test_a_save_is_said_while_it_lasts(tmp_path):
    "By steps or by the clock, in the middle of a run too"
    said = []
    class Kept(View):
        every = 1e9
        def show(self, trainer): said.append((trainer.step, trainer.doing))
    trainer([Kept()], n=0, eval_every=0, dir=tmp_path, save_every=2).fit(3)
    assert (2, 'saving') in said and (3, 'saving') in said


def test_before_save_comes_before_anything_is_copied(tmp_path):
    class Late:
        for_show = False
        def before_save(self, trainer): trainer.log[-1]['mine'] = 1.
    trainer([Late()], dir=tmp_path).fit(4)
    assert load_checkpoint(find_checkpoint(tmp_path))['trainer']['log'][-1]['mine'] == 1.


@pytest.mark.parametrize('make', [
    lambda: LayerStats(every=0), lambda: LayerStats(pick='mlp'), lambda: Trackio(every=0),
    lambda: Trackio(''), lambda: LiveView(every=-1), lambda: LiveView(sample='x'),
    lambda: LiveView(prompt=3), lambda: PageView(''), lambda: PageView('x', every=math.nan),
    lambda: matmul_peak(n=0), lambda: flops_utilization(trainer()),
    lambda: flops_utilization(trainer().fit(1), peak=0)])
def test_views_refuse_what_makes_no_sense(make):
    "R11: at once, not in the first step"
    with pytest.raises((TypeError, ValueError), match='(?i)every|pick|project|sample|prompt|path|'
                                                      'n must|not trained|peak'): make()


def test_a_page_in_the_home_folder(tmp_path, monkeypatch):
    "A24: ~ is the home folder in all that is written"
    monkeypatch.setenv('HOME', str(tmp_path))
    page = PageView('~/run.html', every=0)
    JSONL('~/logs').open({}, 'run')
    trainer([page], dir='~/run').fit(4)
    assert {'run.html', 'logs', 'run'} <= {p.name for p in tmp_path.iterdir()}
    assert trainer(dir='~/run').resume().step == 4 and find_checkpoint('~/run').exists()


def test_utilization_is_that_of_one_device():
    run = trainer().fit(3)
    used = flops_utilization(run, peak=1e9)
    assert used == pytest.approx(run.flops/run.seconds/1e9)
    run.ranks.world_size = 2
    assert flops_utilization(run, peak=1e9) == pytest.approx(used/2)


# ---- trackio

def test_trackio_gets_each_line_once_and_whole(monkeypatch):
    sent = []
    monkeypatch.setattr(Trackio, 'open', lambda self, config, name: sent.append((name, config)))
    monkeypatch.setattr(Trackio, 'log', lambda self, line, step: sent.append((step, line)))
    monkeypatch.setattr(Trackio, 'close', lambda self: sent.append(('end', None)))
    for late in (False, True):
        sent.clear()
        run = trainer([Trackio(every=3)], n=4)
        run.read_late = late
        run.fit(7)
        assert [k for k, _ in sent] == [run.info['name'], 3, 4, 6, 7, 'end']
        assert sent[0][1]['run_id'] == run.info['run_id'] and sent[0][1]['clip'] == 1.
        assert 'valid' in sent[2][1] and 'valid' in sent[4][1]
        assert all(not isinstance(v, torch.Tensor) for _, d in sent[1:-1] for v in d.values())
    run.fit(9)
    assert [k for k, _ in sent[-4:]] == [run.info['name'], 8, 9, 'end']


TRACKED = '''
import sys
sys.path.insert(0, {here!r})
from test_watching import *
a = trainer([Trackio('lab', every=1)], notes=dict(text='cats')).fit(6)
b = trainer([Tracker(TrackioRun('lab'), every=1)]).fit(6)
print()
print(a.info['name'])
print(run_name(b))
'''
SERVED = '''
import sys, trackio
trackio.show('lab', open_browser=False, block_thread=True, host='127.0.0.1', server_port={port})
'''


@pytest.fixture
def dashboard(tmp_path):
    "The address of trackio's dashboard with two runs of ours, and their names"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = os.environ | dict(TRACKIO_DIR=str(tmp_path), BROWSER='true', HF_HUB_OFFLINE='1',
                            GRADIO_ANALYTICS_ENABLED='False')
    code = TRACKED.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, '-c', code], env=env, check=True, capture_output=True,
                          text=True)
    names = [s for s in done.stdout.splitlines() if s.startswith(('cats-', 'GPT-'))]
    assert len(names) == 2, done.stdout
    with open(tmp_path/'log.txt', 'w+', encoding='utf-8') as log:
        server = subprocess.Popen([sys.executable, '-c', SERVED.format(port=port)], env=env,
                                  stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            for _ in range(240):
                with socket.socket() as s:
                    if s.connect_ex(('127.0.0.1', port)) == 0: break
                if server.poll() is not None: break
                time.sleep(.25)
            else: pytest.fail('the dashboard did not start')
            if server.poll() is not None:
                pytest.fail(f'the dashboard stopped: {(tmp_path/"log.txt").read_text()[-2000:]}')
            yield f'http://127.0.0.1:{port}/?project=lab', names
        finally:
            server.terminate()
            try: server.wait(20)
            except subprocess.TimeoutExpired: server.kill()


@pytest.mark.exhaustive
def test_the_dashboard_of_trackio_shows_our_runs(dashboard, chromium):
    "Names and metrics stand in the page, curves are drawn, and nothing leaves this machine"
    (address, names), outside = dashboard, []
    page = chromium.new_page(viewport=dict(width=1400, height=1000))
    def only_here(route):
        if '//127.0.0.1' in route.request.url: return route.continue_()
        outside.append(route.request.url)
        route.abort()
    page.route('**/*', only_here)
    page.goto(address, wait_until='load', timeout=60_000)
    for text in (*names, 'grad_norm', 'loss'):
        page.get_by_text(text).first.wait_for(timeout=60_000)
    assert page.locator('svg, canvas').count()
    assert not outside
    page.close()


def test_layer_stats_refuse_a_compiled_model_whose_layers_no_hook_sees():
    run = trainer([LayerStats()], n=2)
    run.compiled = True
    with pytest.raises(ValueError, match='compile=False'): run.fit(1)
