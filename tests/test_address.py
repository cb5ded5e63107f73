"""The project's address is one setting: written everywhere it belongs, or, until it is ours,
nowhere."""
import json, re, shutil, subprocess

import pytest

from common import ADDRESS, ROOT, name, notebooks


@pytest.fixture
def copy(tmp_path):
    "The files that hold the address"
    for f in ['settings.ini', *ADDRESS.PLACES]: shutil.copy(ROOT/f, tmp_path/f)
    for nb in notebooks():
        (tmp_path/'nbs'/name(nb)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(nb, tmp_path/'nbs'/name(nb))
    return tmp_path


def publish(d, yes, git='https://github.com/gptlab/gptlab'):
    text = (d/'settings.ini').read_text()
    text = re.sub(r'(?m)^published = \w+$', f'published = {yes}', text)
    (d/'settings.ini').write_text(re.sub(r'(?m)^git_url = .*$', f'git_url = {git}', text))


def content(d):
    return {p.relative_to(d): p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file()}


def test_the_address_is_right_everywhere():
    assert not ADDRESS.rewrite(check=True), 'run python .ci/address.py'


def test_until_it_is_published_nothing_leads_there():
    s = ADDRESS.settings()
    if s['published']: pytest.skip('it is published')
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT,
                            capture_output=True, text=True).stdout.split()
    host = re.compile(re.escape(s['git']) + r'|'
                      + re.escape(s['site'].split('//')[1].split('/')[0]))
    files = [ROOT/f for f in listed
             if f.endswith(('.md', '.yml', '.toml', '.cff', '.ipynb')) and (ROOT/f).exists()]
    bad = [str(f.relative_to(ROOT)) for f in files if host.search(f.read_text(encoding='utf-8'))]
    if not listed: pytest.skip('no git here')
    assert not bad, (f'{bad}: write the address in .ci/address.py, which leaves it out until it is '
                     'ours')


def test_published_moved_and_taken_back(copy):
    first = content(copy)
    publish(copy, True)
    assert len(ADDRESS.rewrite(copy)) == len(ADDRESS.PLACES) + len(notebooks())
    assert not ADDRESS.rewrite(copy)
    page = json.loads((copy/'nbs'/'00_start.ipynb').read_text(encoding='utf-8'))
    assert ('colab.research.google.com/github/gptlab/gptlab/blob/main/nbs/00_start.ipynb'
            in json.dumps(page))
    assert 'git clone https://github.com/gptlab/gptlab' in (copy/'CONTRIBUTING.md').read_text()
    publish(copy, True, 'https://github.com/else/where')
    ADDRESS.rewrite(copy)
    left = [f for f, text in content(copy).items()
            if b'github.com/gptlab' in text and f.name != 'settings.ini']
    assert not left and 'https://github.com/else/where' in (copy/'pyproject.toml').read_text()
    publish(copy, False)
    ADDRESS.rewrite(copy)
    assert content(copy) == first


def test_a_place_that_is_gone_is_told(copy):
    (copy/'CITATION.cff').write_text('title: gptlab\n')
    with pytest.raises(SystemExit, match='CITATION.cff'): ADDRESS.rewrite(copy)
