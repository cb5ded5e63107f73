#!/usr/bin/env python3
"""Write the project's address wherever it stands: python .ci/address.py [--check]

One setting decides: `git_url`, `doc_host` and `published` in settings.ini. While `published = False` nothing sends a reader to that address:
pages say "clone this repository" instead of "Open in Colab", and links to the site and to GitHub are left out. Running it twice changes nothing.
"""
import argparse, json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def settings(root: Path = ROOT) -> dict:
    "git_url, site (its address) and published, from settings.ini"
    found = dict(re.findall(r'^(\w+)\s*=\s*(.*?)\s*$', (root/'settings.ini').read_text(encoding='utf-8'), re.M))
    site = found['doc_host'].rstrip('/') + found['doc_baseurl'].rstrip('/') + '/'
    if found['published'] not in ('True', 'False'):
        raise SystemExit(f'settings.ini: published is True or False, not {found["published"]}')
    return dict(git=found['git_url'].rstrip('/'), site=site, published=found['published'] == 'True')


def run_line(page: str, s: dict) -> str:
    "How the notebook `page` (its path below nbs/) is run, as one line of Markdown"
    if not s['published']: return f'To run it: clone this repository, `pip install -e .`, and `jupyter lab nbs/{page}`.'
    colab = f'https://colab.research.google.com/github/{s["git"].split("github.com/")[-1]}/blob/main/nbs/{page}'
    return f'[Open in Colab]({colab}), where `%pip install git+{s["git"]}` comes first.'


RUN = re.compile(r'\n*(?:\[Open in Colab\]\(|To run it: clone this repository).*')

# In these files: (what either form looks like, the published form, the form until then)
PLACES = {
    'README.md': [(r'\[documentation\]\(http[^)]*\)|documentation \(`python \.ci/docs\.py` builds it\)',
                   '[documentation]({site})', 'documentation (`python .ci/docs.py` builds it)')],
    'CONTRIBUTING.md': [(r'git clone http\S+ && cd \S+|cd gptlab  .*',
                         'git clone {git} && cd gptlab', 'cd gptlab                       # a clone of this repository')],
    'CITATION.cff': [(r'(?m)^(?:# )?url: .*', 'url: {site}', '# url: when published'),
                     (r'(?m)^(?:# )?repository-code: .*', 'repository-code: {git}', '# repository-code: when published')],
    'pyproject.toml': [(r'(?m)^(?:# )?Repository = .*', 'Repository = "{git}"', '# Repository = when published'),
                       (r'(?m)^(?:# )?Documentation = .*', 'Documentation = "{site}"', '# Documentation = when published')],
    '_quarto.yml': [(r'(?m)^  (?:# )?site-url: .*', '  site-url: {site}', '  # site-url: when published'),
                    (r'(?m)^  (?:# )?repo-url: .*', '  repo-url: {git}', '  # repo-url: when published'),
                    (r'(?m)^  (?:# )?repo-actions: .*', '  repo-actions: [source, issue]', '  # repo-actions: when published'),
                    (r'(?m)^    (?:# right: when published|right:\n      - icon: github\n        href: .*\n        text: GitHub)$',
                     '    right:\n      - icon: github\n        href: {git}\n        text: GitHub', '    # right: when published')]}


def page_text(nb: dict, line: str) -> bool:
    "Put the line under the opening words of a notebook; True when it changed"
    prose = [c for c in nb['cells'] if c['cell_type'] == 'markdown']
    if len(prose) < 2: raise ValueError('a notebook has no prose below its title; write two sentences first')
    old = ''.join(prose[1]['source'])
    new = RUN.sub('', old).rstrip() + '\n\n' + line
    prose[1]['source'] = new.splitlines(keepends=True)
    return new != old


def rewrite(root: Path = ROOT, check: bool = False) -> list[str]:
    "The files in which the address stood wrong; they are mended unless `check`"
    s, wrong = settings(root), []
    for name, places in PLACES.items():
        old = new = (root/name).read_text(encoding='utf-8')
        for pattern, published, until in places:
            form = (published if s['published'] else until).format(**s)
            new, n = re.subn(pattern, lambda m: form, new)
            if n != 1: raise SystemExit(f'{name}: {pattern} was found {n} times, not once')
        if new != old:
            wrong.append(name)
            if not check: (root/name).write_text(new, encoding='utf-8')
    for path in sorted((root/'nbs').rglob('*.ipynb')):
        page = path.relative_to(root/'nbs')
        if any(q.startswith(('.', '_')) for q in page.parts): continue
        nb = json.loads(path.read_text(encoding='utf-8'))
        if not page_text(nb, run_line(page.as_posix(), s)): continue
        wrong.append(f'nbs/{page.as_posix()}')
        if not check:
            path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')
    return wrong


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--check', action='store_true', help='change nothing; say what is wrong, and exit with 1')
    args = p.parse_args()
    found = rewrite(check=args.check)
    print('\n'.join(found) or 'the address is right everywhere')
    raise SystemExit(bool(found) if args.check else 0)
