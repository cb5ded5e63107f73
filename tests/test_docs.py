"""The docs site, built as a reader gets it: every link leads somewhere, every page opens without a
complaint, and none asks another host.

The site is built by .ci/docs.py (nbdev and smalldocs). Quarto builds the published one from the
same _quarto.yml; that is not tested here.
"""
import ast, functools, html, http.server, json, re, subprocess, sys, threading
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from common import ADDRESS, LIB, PUBLISHED, ROOT, module_of, name, notebooks

pytest.importorskip('smalldocs', reason='smalldocs is not installed: it needs Python 3.11')
UNTAUGHT = {'references.html', 'glossary.html'}


# pages in folders use the package and belong to no part of the flow
def has_map(f): return f not in UNTAUGHT and '/' not in f


class Page(HTMLParser):
    "The links, ids and text of a page"
    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.asks, self.text = [], set(), [], path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        if 'id' in at: self.ids.add(at['id'])
        if tag == 'a' and at.get('href'): self.links.append(at['href'])
        elif tag in ('script', 'img', 'iframe', 'source', 'video', 'audio') and at.get('src'):
            self.asks.append(at['src'])
        elif tag == 'link' and at.get('rel') != 'canonical' and at.get('href'):
            self.asks.append(at['href'])


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The whole site, in a temporary folder"
    out = tmp_path_factory.mktemp('docs')/'site'
    done = subprocess.run([sys.executable, '.ci/docs.py', '--out', str(out)], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope='module')
def read(site):
    return {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob('*.html'))}


def test_every_notebook_has_its_page(read):
    want = {re.sub(r'(^|/)\d+_', r'\1', name(p)).replace('.ipynb', '.html') for p in notebooks()}
    assert want <= read.keys(), f'missing: {sorted(want - read.keys())}'


def test_every_page_has_its_parts(read):
    bad = []
    for f, page in read.items():
        body = page.text
        if not re.search(r'<h1[^>]*class="[^"]*title', body): bad.append(f'{f}: no title')
        if not re.search(r'class="[^"]*(subtitle|description)', body):
            bad.append(f'{f}: no subtitle')
        if ('colab.research.google.com' if PUBLISHED else 'clone this repository') not in body:
            bad.append(f'{f}: how it is run is not on the page')
        if has_map(f) and 'The flow of gptlab' not in body:
            bad.append(f'{f}: the map is not on the page')
        if 'id="TOC"' not in body: bad.append(f'{f}: no table of contents')
        if re.search(r'<span class="math|\\\(|\$\$',
                     re.sub(r'<(pre|code)\b.*?</\1>', '', body, flags=re.S)):
            bad.append(f'{f}: maths was left as TeX')
    assert not bad, '\n'.join(bad)


def test_chapters_show_signatures(read):
    "A chapter that exports something public shows it with its parameters and a link to its source"
    bad = []
    for p in notebooks():
        m = module_of(p)
        f = re.sub(r'(^|/)\d+_', r'\1', name(p)).replace('.ipynb', '.html')
        where = f'blob/main/gptlab/{m}.py#L' if PUBLISHED else f'gptlab/{m}.py, line '
        if (m and re.search(r'^(def|class) [a-zA-Z]', (LIB/f'{m}.py').read_text(encoding='utf-8'),
                            re.M) and where not in read[f].text):
            bad.append(f'{f}: no signature of anything in gptlab.{m}')
    assert not bad, '\n'.join(bad)


def code_of(page):
    "The code of a page as Python text, folded code too"
    blocks = re.findall(r'<pre class="sourceCode python[^>]*>(.*?)</pre>', page.text, re.S)
    return [html.unescape(re.sub(r'<[^>]+>', '', b)) for b in blocks]


def chapter_pages(read):
    "Module, its source, and its page"
    for p in notebooks():
        if m := module_of(p):
            f = re.sub(r'(^|/)\d+_', r'\1', name(p)).replace('.ipynb', '.html')
            yield m, ast.parse((LIB/f'{m}.py').read_text(encoding='utf-8')), read[f]


def test_every_definition_is_on_its_page_once(read):
    "Also helpers, and each method of a class; a part that is not shown cannot be rebuilt"
    bad = []
    begins = re.compile(r'\s*(def|class) (\w+)')
    for m, module, page in chapter_pages(read):
        lines = [found.groups() for block in code_of(page) for line in block.splitlines()
                 if (found := begins.match(line))]
        shown = Counter(lines)
        there = Counter(('def' if isinstance(node, ast.FunctionDef) else 'class', node.name)
                        for node in ast.walk(module)
                        if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        for (kind, called), count in there.items():
            if shown[kind, called] < count: bad.append(f'{m}: {called} is not on its page')
            if kind == 'class' and shown[kind, called] > count:
                bad.append(f'{m}: {called} is shown {shown[kind, called]} times')
    assert not bad, '\n'.join(bad)


def test_code_holds_no_markup_of_others(read):
    "No raw link of Markdown, and no directive of nbdev's"
    bad = [f'{f}: {found[:3]}' for f, page in read.items() for block in code_of(page)
           if (found := re.findall(r'\]\(https?://[^)]*\)|^#\| .*', block, re.M))]
    assert not bad, '\n'.join(bad)


def test_the_map_leads_to_the_chapters(read):
    for f, page in read.items():
        if has_map(f): assert page.text.count('<a href="trainer.html"><rect') == 1, f


def test_the_map_says_what_it_shows(read):
    says = dict(trainer='You are in trainer.', start='a link to its chapter.</p>',
                attentions='on the shelf, beside attention.', hub='on the shelf, beside model.')
    for f, said in says.items():
        assert re.search(r'class="caption">[^<]*' + re.escape(said), read[f'{f}.html'].text), f


def test_imports_are_folded_once(read):
    row = r'<summary>Imports</summary>(?:(?!<summary>|<h2|<p>).)*?<summary>Imports</summary>'
    bad = [f for f, page in read.items() if re.search(row, page.text, re.S)]
    assert not bad, bad


def test_a_term_leads_to_the_glossary_once_a_page(read):
    "And never from a page that defines it, or from a heading"
    links = {f: [h for h in page.links if 'glossary.html#term-' in h] for f, page in read.items()}
    twice = {f: h for f, h in links.items() if len(h) != len(set(h))}
    assert not twice
    assert 'glossary.html#term-residual-stream' in links['stacks.html']
    assert 'glossary.html#term-residual-stream' not in links['start.html']
    assert not any(re.search(r'<h\d[^>]*>(?:(?!</h).)*#term-', p.text) for p in read.values())


def test_the_sidebar_says_why_numbers_leave_gaps(read):
    for f in ('index.html', 'recipes/gpt_lab.html'):
        assert read[f].text.count('<span class="sidebar-note">') == 1, f


def test_titles_have_the_chapters_number(read, site):
    assert '12 · Trainer' in read['trainer.html'].text
    index = json.loads((site/'search.json').read_text(encoding='utf-8'))
    assert any(entry['title'] == '12 · Trainer' for entry in index)


def test_links_lead_somewhere(site, read):
    bad = []
    for f, page in read.items():
        for href in page.links:
            url, anchor = urldefrag(href)
            if urlsplit(url).scheme or url.startswith('//'):
                if 'gptlab.github.io' in url:
                    bad.append(f'{f}: {href} leaves this copy of the site')
                if not PUBLISHED and url.startswith(ADDRESS.settings()['git']):
                    bad.append(f'{f}: {href} is an address that is not ours yet')
                continue
            base = site if url.startswith('/') else (site/f).parent
            target = (base/unquote(url).lstrip('/')).resolve() if url else (site/f)
            if target.is_dir(): target = target/'index.html'
            if not target.exists(): bad.append(f'{f}: {href} leads nowhere')
            elif (anchor and target.suffix == '.html' and unquote(anchor)
                  not in read[target.relative_to(site.resolve()).as_posix() if url else f].ids):
                bad.append(f'{f}: {href} has no such place on its page')
    assert not bad, '\n'.join(sorted(set(bad)))


def test_pages_ask_no_other_host(read):
    bad = [f'{f}: {a}' for f, page in read.items() for a in page.asks
           if re.match(r'(https?:)?//', a)]
    assert not bad, '\n'.join(bad)


def test_search_finds_pages_under_their_names(site):
    text = (site/'search.json').read_text(encoding='utf-8')
    assert 'start.html' in text and '00_start.html' not in text


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def look(browser, home, f):
    "Open one page; what is wrong with it"
    bad, page = [], browser.new_page()
    page.on('console',
            lambda m: bad.append(f'{f}: the console says {m.text} {m.location.get("url", "")}')
                      if m.type == 'error' else None)
    page.on('pageerror', lambda e: bad.append(f'{f}: {e}'))
    page.on('request', lambda r: None if r.url.startswith((home, 'data:', 'blob:'))
                                 else bad.append(f'{f}: asks {r.url}'))
    page.goto(home + f, wait_until='load')
    page.wait_for_timeout(50)
    if not page.locator('h1').first.is_visible(): bad.append(f'{f}: the title is not visible')
    if has_map(f):
        box = page.locator('.map[aria-label^="The flow of gptlab"] svg').first.bounding_box()
        if not box or box['width'] < 300 or box['height'] < 40:
            bad.append(f'{f}: the map is not visible: {box}')
    page.close()
    return bad


@pytest.fixture(scope='module')
def home(site):
    "The site's address on a server of its own"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0),
                                             functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


# one of each kind
ALWAYS = ['index.html', 'start.html', 'model.html', 'hub.html', 'recipes/gradientlab.html',
          'references.html']


def test_pages_open_in_a_browser(home, read, chromium):
    bad = [b for f in ALWAYS for b in look(chromium, home, f)]
    assert not bad, '\n'.join(bad)


SOUGHT = {'gradient accumulation': '12 · Trainer', 'KV cache': '07 · Attention',
          'residual stream': '08 · Model', 'learning rate per group': '09 · Optimizers',
          'positional encoding': '07 · Attention', 'weight decay': '09 · Optimizers'}


def test_a_search_for_a_term_finds_its_chapter_first(home, chromium):
    page, found = chromium.new_page(), {}
    page.goto(home, wait_until='load')
    box, results = page.locator('#quarto-search input'), '.smalldocs-search-results a'
    for term in SOUGHT:
        box.fill(term)
        page.wait_for_function('''([css, term]) => {
            const a = document.querySelector(css);
            return a && a.innerText.toLowerCase().includes(term.split(' ')[0].toLowerCase()) }''',
            arg=[results, term], timeout=20_000)
        found[term] = page.locator(results).first.inner_text().split('\n')[0]
        box.fill('')
    page.close()
    assert {t: f[:len(SOUGHT[t])] for t, f in found.items()} == SOUGHT


def page_of(path): return re.sub(r'(^|/)\d+_', r'\1', name(path)).replace('.ipynb', '.html')


BOOK = [page_of(p) for p in notebooks() if re.match(r'0\d|1[0-5]', p.name)]
REST = [page_of(p) for p in notebooks() if page_of(p) not in BOOK]

# What sticks out of the page and stands in no box that scrolls; maths draws beyond its own edges
CUT = """wide => {
    const boxed = e => {
        for (let a = e.parentElement; a && a !== document.body; a = a.parentElement) {
            if (/auto|scroll/.test(getComputedStyle(a).overflowX)) return true }
        return false }
    return [...document.querySelectorAll('main *')].filter(e => {
        const r = e.getBoundingClientRect()
        const out = r.width && (r.right > wide + 1 || r.left < -1)
        return out && !e.closest('svg, math') && !boxed(e)
    }).map(e => `${e.tagName} ${e.className}: ${(e.innerText || '').slice(0, 40)}`) }"""


def misfits(browser, home, pages, width, most):
    "What is too high, too wide or cut off on these pages"
    bad, page = [], browser.new_page(viewport=dict(width=width, height=900))
    for f in pages:
        page.goto(home + f, wait_until='load')
        high, wide = page.evaluate("""() => [document.documentElement.scrollHeight,
                                             document.documentElement.scrollWidth]""")
        if high > most: bad.append(f'{f}: {high:,} pixels high')
        if wide > width: bad.append(f'{f}: {wide} pixels wide')
        bad += [f'{f}: cut off: {what}' for what in page.evaluate(CUT, width)[:3]]
    page.close()
    return bad


@pytest.mark.parametrize('width, most', [(1300, 20_000), (390, 25_000)])
def test_a_chapter_is_not_endless_and_fits_its_page(home, chromium, width, most):
    bad = misfits(chromium, home, BOOK, width, most)
    assert not bad, '\n'.join(bad)


@pytest.mark.exhaustive
@pytest.mark.parametrize('width, most', [(1300, 25_000), (390, 30_000)])
def test_other_pages_are_not_endless_and_fit(home, chromium, width, most):
    bad = misfits(chromium, home, REST, width, most)
    assert not bad, '\n'.join(bad)


def test_what_is_cut_off_would_be_found(chromium):
    page = chromium.new_page(viewport=dict(width=390, height=600))
    page.set_content('<main><p style="overflow-x:auto"><b style="margin-left:400px">a</b></p>'
                     '<table style="width:500px"><td>wide</td></table></main>')
    assert any(what.startswith('TABLE') for what in page.evaluate(CUT, 390))
    assert not any(what.startswith('B ') for what in page.evaluate(CUT, 390))
    page.close()


def test_a_phone_sees_the_whole_map(home, chromium):
    page = chromium.new_page(viewport=dict(width=390, height=900))
    page.goto(home + 'attentions.html', wait_until='load')
    boxes = page.locator('.map .boxes a')
    assert boxes.count() == 15 and page.locator('.map .boxes a.lit').inner_text() == 'attention'
    for box in boxes.all():
        at = box.bounding_box()
        assert 0 <= at['x'] and at['x'] + at['width'] <= 390, at
    page.close()


@pytest.mark.exhaustive
def test_all_other_pages_open_in_a_browser(home, read, chromium):
    bad = [b for f in read if f not in ALWAYS for b in look(chromium, home, f)]
    assert not bad, '\n'.join(bad)
