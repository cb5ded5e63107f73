"""The front page, the command line and the README are one run: same parts, same numbers, same
figure."""
import base64, json, re

import pytest
import torch

from common import NBS, ROOT
from gptlab.all import corpus
from gptlab.cli import front_page_run, SECONDS


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
        if 'opt = Opt(' in source: return space
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
