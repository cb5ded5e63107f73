#!/usr/bin/env python3
"""Build the docs site without Quarto: python .ci/docs.py [--out _docs]

nbdev prepares the notebooks (nbs/92_pages.ipynb says how), smalldocs renders them from the same
_quarto.yml that Quarto uses on GitHub, and we repair what smalldocs does differently: the names of
pages, links to the published site, and maths, which becomes MathML. With --sidebar only the sidebar
in _quarto.yml is written. The result asks no other host for anything.
"""
import argparse, html, os, re, shutil, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
FOLDERS = dict(recipes='Recipes', howto='How to', experiments='Experiments')
# A shelf chapter stands beside the part of the map that it lights: section → those parts
SHELF = {'Text': 'tokenizer bpe data packing', 'Model': 'blocks attention model',
         'Training': 'optimizers schedules trainer checkpoints watching',
         'Writing and measuring': 'generation score ablation', 'Tools': 'start cli'}
NUMBERS = 'Numbers give the order of imports, not of reading; so they stay, and leave gaps.'


# ---- the sidebar

def pages() -> list[Path]:
    "The notebooks that become pages, as paths below nbs/"
    found = sorted(p.relative_to(NBS) for p in NBS.rglob('*.ipynb'))
    return [p for p in found if not any(q.startswith(('.', '_')) for q in p.parts)]


def map_part(page: Path) -> str:
    "The part of the map that a notebook lights at its top"
    found = re.search(r"flow_map\('(\w+)'\)", (NBS/page).read_text(encoding='utf-8'))
    if not found: raise SystemExit(f"{page}: no map; a chapter has flow_map('…') near its top")
    return found[1]


def shelf(chapters: list[Path]) -> list[str]:
    "The shelf's part of the sidebar: chapters by subject, in the order of their numbers"
    parts = {p: map_part(p) for p in chapters}
    lines = ['      - section: The shelf', '        contents:', f'          - text: "{NUMBERS}"']
    for title, keys in SHELF.items():
        members = [p for p in chapters if parts[p] in keys.split()]
        if not members: continue
        lines += [f'          - section: {title}', '            contents:']
        lines += [f'              - {p.as_posix()}' for p in members]
    return lines


def sidebar() -> str:
    "The sidebar of _quarto.yml as it should be for the notebooks on disk"
    num = lambda p: int(p.name[:2]) if p.name[:2].isdigit() else None
    top = [p for p in pages() if len(p.parts) == 1]
    lines = ['      - index.ipynb'] if Path('index.ipynb') in top else []
    groups = {'The book': [p for p in top if num(p) is not None and num(p) <= 15], 'The shelf': []}
    groups |= {title: [p for p in pages() if p.parts[0] == folder and len(p.parts) > 1]
               for folder, title in FOLDERS.items()}
    for title, members in groups.items():
        if title == 'The shelf': lines += shelf([p for p in top if (num(p) or 0) > 15])
        elif members:
            lines += [f'      - section: {title}', '        contents:']
            lines += [f'          - {p.as_posix()}' for p in members]
    rest = [p for p in top if num(p) is None and p.name != 'index.ipynb']
    return '\n'.join(lines + [f'      - {p.as_posix()}' for p in rest]) + '\n'


def write_sidebar() -> bool:
    "Rewrite the sidebar, which is the end of _quarto.yml; True when it changed"
    path = ROOT/'_quarto.yml'
    old = path.read_text(encoding='utf-8')
    new = old[:old.index('    contents:\n') + len('    contents:\n')] + sidebar()
    if new != old: path.write_text(new, encoding='utf-8')
    return new != old


# ---- the repairs

def page_name(stem: str) -> str:
    "nbdev's name for a page: blocks.html for 06_blocks"
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', stem) + '.html'


def to_mathml(match: re.Match) -> str:
    "One formula of a page, from TeX to MathML"
    from latex2mathml.converter import convert
    tex = html.unescape(match[2]).strip()
    block = match[1] == 'display'
    tex = tex.removeprefix('\\[' if block else '\\(').removesuffix('\\]' if block else '\\)')
    try: return convert(tex, display='block' if block else 'inline')
    except Exception as e:
        kind = type(e).__name__
        raise SystemExit(f'maths that latex2mathml cannot read: {tex!r} ({kind})') from None


MATH = re.compile(r'<span class="math (inline|display)">(.*?)</span>', re.S)
# a line of the sidebar that leads nowhere
NOTE = re.compile(r'<a href="" class="sidebar-item-text sidebar-link">(.*?)</a>')
CDN = re.compile(r'<(?:script|link)\b[^>]*https://cdn\.jsdelivr\.net[^>]*>(?:</script>)?'
                 r'|<script\b[^>]*>[^<]*renderMathInElement[^<]*</script>')


def repair(site: Path) -> None:
    """Give the pages nbdev's names, and make links to the published site relative

    TeX becomes MathML, and what comes from a CDN is dropped.
    """
    cfg = dict(re.findall(r'^(\w+)\s*=\s*(.*)$', (ROOT/'settings.ini').read_text(), re.M))
    home = cfg['doc_host'].rstrip('/') + cfg['doc_baseurl'].rstrip('/') + '/'
    rename = {p.with_suffix('.html').as_posix(): (p.parent/page_name(p.stem)).as_posix()
              for p in pages()}
    for old, new in rename.items():
        if old != new and (site/old).exists(): (site/old).replace(site/new)
    stems = {Path(a).name: Path(b).name for a, b in rename.items() if a != b}
    names = '|'.join(map(re.escape, stems))
    link = re.compile(rf'(?<![\w-])({names})(?=["#?<\s])') if stems else None
    for f in [*site.rglob('*.html'), site/'search.json', site/'sitemap.xml']:
        if not f.exists(): continue
        text = f.read_text(encoding='utf-8')
        if link: text = link.sub(lambda m: stems[m[1]], text)
        if f.suffix == '.html':
            up = '../' * (len(f.relative_to(site).parts) - 1) or './'
            text = re.sub(r'((?:href|src)=")' + re.escape(home), r'\1' + up, text)
            text = CDN.sub('', MATH.sub(to_mathml, text))
            text = NOTE.sub(r'<span class="sidebar-note">\1</span>', text)
        f.write_text(text, encoding='utf-8')


# ---- the build

def build(out: Path, quiet: bool = False) -> Path:
    "Process the notebooks, render them, repair the pages; returns the folder of the site"
    start = time.time()
    os.environ.update(OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)
    try: cache = proc_nbs(n_workers=2, force=True)
    except Exception as e:
        raise SystemExit(f'nbdev could not prepare a notebook: {type(e).__name__}: {e}') from None
    done = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', str(cache)],
                          capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stdout + done.stderr)
    # for Quarto, or done below
    ignored = ('wrote', 'execute.enabled', 'html-math-method', 'format.html.grid', 'output-file')
    said = [w for w in done.stderr.splitlines() if not any(i in w for i in ignored)]
    if not quiet and said: print('\n'.join(said))
    if out.exists(): shutil.rmtree(out)
    shutil.move(str(cache/'_docs'), out)
    repair(out)
    count, seconds = len(list(out.rglob('*.html'))), time.time() - start
    if not quiet: print(f'{count} pages in {seconds:.0f} s: {out}/index.html')
    return out


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', type=Path, default=ROOT/'_docs',
                   help='the folder for the site (replaced)')
    p.add_argument('--sidebar', action='store_true', help='only rewrite the sidebar in _quarto.yml')
    args = p.parse_args()
    if args.sidebar: print('sidebar rewritten' if write_sidebar() else 'sidebar is right')
    else: build(args.out.resolve())
