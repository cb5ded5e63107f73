"""The front page, the command line and the README are one run: same parts, same numbers, same
figure."""
import base64, json, re
from functools import partial

import pytest
import torch

from common import NBS, notebooks, ROOT
from gptlab.all import (adamw, batches, ByteTokenizer, corpus, GPT, gpt2_config, GPTConfig, hidden,
                        llama_config, muon, Opt, set_seed, Trainer)
from gptlab.blocks import perturb_parameters
from gptlab.cli import front_page_parts, front_page_run, ROW, SECONDS
from test_model import recipe


@pytest.fixture(scope='module')
def page():
    "What the front page's cells make, up to the optimizer, on the built-in stories"
    cells = [''.join(c['source'])
             for c in json.loads((NBS/'index.ipynb').read_text(encoding='utf-8'))['cells']
             if c['cell_type'] == 'code']
    space = {}
    for source in cells:
        exec(source.replace("corpus('shakespeare')", "corpus('stories')")
             .replace('flow_map(', '(lambda key: None)('), space)
        if 'opt = optimizer(' in source: return space
    raise AssertionError('the front page makes no optimizer')


def test_page_and_command_make_the_same_run(page):
    run = front_page_run(corpus('stories'), callbacks=[])
    assert run.model.cfg.to_dict() == page['cfg'].to_dict()
    for (n, a), (m, b) in zip(run.model.named_parameters(), page['model'].named_parameters(),
                              strict=True):
        assert n == m and torch.equal(a, b), n
    plain = lambda opt: [{k: v for k, v in g.items()
                          if k != 'params' and not k.startswith('initial_')}
                         for g in opt.state_dict()['param_groups']]
    assert plain(run.opt) == plain(page['opt'])
    one, two = next(run.train), next(page['train'])
    assert (all(torch.equal(one[k], two[k]) for k in one)
            and run.train.state_dict() == page['train'].state_dict())


def test_command_and_page_train_equally_long():
    assert f'run.fit(seconds={SECONDS:.0f})' in (NBS/'index.ipynb').read_text(encoding='utf-8')
    assert SECONDS <= 240


def test_readme_shows_the_saved_figure():
    cells = json.loads((NBS/'index.ipynb').read_text(encoding='utf-8'))['cells']
    outputs = next(c['outputs'] for c in cells if 'front_figure(run' in ''.join(c['source']))
    png = next(o['data']['image/png'] for o in outputs if 'image/png' in o.get('data', {}))
    saved = (NBS/'images'/'frontpage.png').read_bytes()
    assert base64.b64decode(''.join(png)) == saved, (
        'README.md shows an older figure: copy it from the saved output of nbs/index.ipynb into '
        'nbs/images/frontpage.png')


def test_readme_has_the_scores_of_the_saved_run():
    "`python benchmarks/default.py` makes page, picture and scores again, and says what to write"
    kept = json.loads((ROOT/'benchmarks/results/score.json').read_text(encoding='utf-8'))['scores']
    three = [kept[k]['bpb'] for k in ('rows', 'stride', 'prequential, AdamW 0.0003')]
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert '{:.3f}, {:.3f} and {:.3f}'.format(*three) in text
    said = (NBS/'index.ipynb').read_text(encoding='utf-8')
    assert f'{three[0]:.3f} bits per byte after' in said


def test_readmes_lines_run_after_one_another(tmp_path, monkeypatch, capsys):
    "U08: one after the other in one notebook, on the stories, a few steps each"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '2')
    text, space = (ROOT/'README.md').read_text(encoding='utf-8'), {}
    blocks = re.findall(r'```python\n(.*?)\n```', text, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("corpus('shakespeare')", "corpus('stories')")
             .replace('vocab_size=2048', 'vocab_size=300'), space)
    assert 'local' in capsys.readouterr().out and len(space['runs'].records) == 6


def test_readme_has_the_two_commands_and_live_links():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert (re.findall(r'```bash\n(.*?)\n```', text)
            == ['pip install -e . && gptlab train', "pip install -e '.[dev]' && pytest"])
    for link in re.findall(r'\]\((?!http)([^)#]+)\)', text): assert (ROOT/link).exists(), link
    assert '@' not in re.sub(r'\S+@\S+\.\S+', '', text), 'a placeholder is left'


# ---- P6: no model of the book reads beyond its rows

def test_the_front_pages_rows_fill_its_context(page):
    model, _, train, _ = front_page_parts(corpus('stories'))
    assert model.cfg.context_length == page['cfg'].context_length == train.T == ROW
    assert f'context_length={ROW}' in (ROOT/'README.md').read_text(encoding='utf-8')


def test_no_saved_page_trains_on_rows_shorter_than_the_context():
    "The trainer says so, and nobody listened"
    said = [p.name for p in notebooks() for c in json.loads(p.read_text(encoding='utf-8'))['cells']
            if 'to read beyond' in json.dumps(c.get('outputs', ''))]
    assert not said


SMALL = dict(vocab_size=257, n_layers=2, n_heads=2, d_model=64)

def of_recipe(name, make, *args, **kw):
    return lambda **more: recipe(name)[make](*args, vocab_size=257, **kw | more)

# what the book and its recipes train, and the presets of chapter 08, small
TRAINED = dict(
    front=partial(GPTConfig, **SMALL), chapters=partial(GPTConfig, **SMALL | dict(d_model=32)),
    gpt2=partial(gpt2_config, **SMALL),
    llama=partial(llama_config, **SMALL, n_kv_heads=2, d_ff=128),
    experimental_slm=of_recipe('experimental_slm', 'slm', n_layers=2, d_model=64, d_ff=128),
    gradientlab=of_recipe('gradientlab', 'gradientlab', n_layers=6, d_model=64,
                          d_ff=128),
    gpt_lab=of_recipe('gpt_lab', 'gpt_lab', 4, aspect=32, d_head=64),
    hlb_gpt=of_recipe('hlb_gpt', 'hlb_gpt', .25))

def harm_of_context(cfg, T, context=64, steps=120):
    """(nats, standard error): how much worse the last quarter of a row is predicted with the whole
    context before it than with its half, on the same tokens, after some steps on rows of T"""
    set_seed(0)
    model = GPT(cfg(context_length=context))
    opt = Opt(model, muon(lr=.014, at=hidden), adamw(lr=3e-3))
    train, _ = batches('stories', ByteTokenizer(), B=8, T=T)
    Trainer(model, opt, train, callbacks=[], eval_every=0, device='cpu').fit(steps)
    exam = batches('stories', ByteTokenizer(), B=8, T=context)[1]
    rows = [b for b in exam if (b['targets'] != -100).all()][:100]
    model.eval()
    half = slice(context//2, None)
    with torch.no_grad():
        whole = torch.cat([model(**b)[0][:,half] for b in rows])                # (N,T/2)
        short = torch.cat([model(b['ids'][:,half], b['targets'][:,half])[0] for b in rows])
    worse = (whole - short)[:,context//4:].mean(1)                              # (N,)
    assert model.trained_length == T
    return worse.mean().item(), (worse.std()/len(worse)**.5).item()


# a model of so few steps spreads its attention thin, also within its rows: up to 0.07 nats worse
@pytest.mark.exhaustive
@pytest.mark.parametrize('name', TRAINED)
def test_context_harms_no_model_whose_rows_fill_it(name, capsys):
    nats, error = harm_of_context(TRAINED[name], T=64)
    assert nats < .09 + 2*error and 'to read beyond' not in capsys.readouterr().out


@pytest.mark.exhaustive
def test_context_beyond_the_rows_harms(capsys):
    "What the front page did: a context of twice the row"
    nats, error = harm_of_context(TRAINED['front'], T=32)
    assert nats > .1 + 2*error and 'to read beyond 32' in capsys.readouterr().out


@pytest.mark.exhaustive
def test_learnt_positions_beyond_the_rows_harm_once_they_are_learnt():
    "After 120 steps a table of positions says little, and nothing shows; after 600 it does"
    nats, error = harm_of_context(TRAINED['experimental_slm'], T=32, steps=600)
    assert nats > .4 + 2*error


@pytest.mark.parametrize('name', ['gpt2', 'experimental_slm'])
def test_every_learnt_position_is_one_that_the_rows_reach(name):
    "Only rows that fill the context reach all of a table of positions: the rest has no gradient"
    model, ids = GPT(TRAINED[name](context_length=64)), torch.randint(0, 257, (2, 64))
    perturb_parameters(model)
    for T in (64, 32):
        model.zero_grad()
        model(ids[:,:T], ids[:,:T])[0].mean().backward()
        assert (model.places.weight.grad.abs().amax(1) > 0).tolist() == [t < T for t in range(64)]
