"""Names, licences, specials and samples are others' texts: whatever shows them shows them as text
(R01). Here every object of `hostile.py` is shown, and looked at; in JupyterLab it is in
test_jupyterlab.py."""
import importlib, inspect, re
from html.parser import HTMLParser

import pytest

from common import LIB
import hostile

mistune = pytest.importorskip('mistune', reason='mistune is not installed')
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')


class Looking(HTMLParser):
    "Collects what could act in a page"
    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        inline = tag == 'img' and str(values.get('src')).startswith('data:image/')
        if tag in ('script', 'iframe', 'object') or (tag == 'img' and not inline):
            self.found.append(tag)
        self.found += [a for a in values if a.startswith('on')]
        self.found += [v for v in values.values() if str(v).startswith('javascript:')]


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
    return dict(hostile.objects(tmp_path_factory.mktemp('hostile')))


def markup(thing):
    "What a notebook takes, as HTML: (kind, text)"
    if hasattr(thing, 'value') and type(thing).__module__.startswith('ipywidgets'):
        yield 'widget', thing.value
    for method in ('_repr_html_', '_repr_markdown_'):
        if not hasattr(thing, method): continue
        text = getattr(thing, method)()
        yield method, text if 'html' in method else mistune.html(text)


def test_r01_no_object_shows_others_text_as_markup(shown):
    bad = []
    for name, thing in shown.items():
        for kind, text in markup(thing):
            found = Looking(text).found + CONTROL.findall(text)
            if found: bad.append(f'{name} ({kind}): {found[:3]}')
    assert not bad, '\n'.join(bad)


def test_r01_no_object_sends_control_characters_to_a_terminal(shown):
    bad = []
    for name, thing in shown.items():
        if type(thing).__module__.startswith('ipywidgets') or isinstance(thing, hostile.Page):
            continue
        for text in (repr(thing), str(thing)):
            if found := CONTROL.findall(text): bad.append(f'{name}: {found[:3]}')
    assert not bad, '\n'.join(dict.fromkeys(bad))


def test_r01_tables_keep_their_cells(shown):
    "A bar or a line end in a name makes no new cell or row"
    for name, thing in shown.items():
        if not hasattr(thing, '_repr_markdown_'): continue
        tables = re.findall(r'(?:^\|.*\n?)+', thing._repr_markdown_(), re.M)
        for table in tables:
            cells = {len(re.findall(r'(?<!\\)\|', s)) for s in table.splitlines()}
            assert len(cells) == 1, f'{name}: {table}'


def test_every_class_that_shows_itself_is_here(shown):
    kinds = {c for thing in shown.values() for c in type(thing).__mro__}
    missing = []
    for path in sorted(LIB.glob('*.py')):
        if path.stem.startswith('_') or path.stem in ('all', 'cli'): continue
        module = importlib.import_module(f'gptlab.{path.stem}')
        for name, c in vars(module).items():
            own = inspect.isclass(c) and c.__module__ == module.__name__
            if not own: continue
            if any(m in vars(c) for m in ('_repr_html_', '_repr_markdown_')) and c not in kinds:
                missing.append(f'{module.__name__}.{name}')
    assert set(missing) <= {'gptlab.core.FlowMap'}, missing


def test_the_test_sees_what_acts():
    for text in (hostile.TAGS, '<a href="javascript:x">', '<p onclick="x">'):
        assert Looking(text).found
    assert not Looking('&lt;script&gt; <img src="data:image/svg+xml;base64,eA==" alt="a">').found
    assert Looking(mistune.html(hostile.HARM)).found
