#!/usr/bin/env python3
"""Put the "Open in Colab" line under the opening words of each notebook: python .ci/colab.py [NOTEBOOK ...]

The line is part of the notebook, so that GitHub, JupyterLab, Quarto and our own docs all show it. Running it twice changes nothing.
"""
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = ('[Open in Colab](https://colab.research.google.com/github/gptlab/gptlab/blob/main/nbs/{}), '
        'where `%pip install git+https://github.com/gptlab/gptlab` comes first.')
OLD = re.compile(r'\n*\[Open in Colab\]\([^)]*\).*')


def badge(path: Path) -> bool:
    "Add or correct the line; True when the file changed"
    nb = json.loads(path.read_text(encoding='utf-8'))
    prose = [c for c in nb['cells'] if c['cell_type'] == 'markdown']
    if len(prose) < 2: raise ValueError(f'{path.name} has no prose below its title; write two sentences first')
    text = OLD.sub('', ''.join(prose[1]['source'])).rstrip() + '\n\n' + LINK.format(path.relative_to(ROOT/'nbs').as_posix())
    if text == ''.join(prose[1]['source']): return False
    prose[1]['source'] = text.splitlines(keepends=True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')
    return True


if __name__ == '__main__':
    hidden = lambda p: any(q.startswith(('.', '_')) for q in p.relative_to(ROOT/'nbs').parts)
    paths = [Path(a).resolve() for a in sys.argv[1:]] or sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not hidden(p))
    for p in paths:
        if badge(p): print('Colab line:', p.relative_to(ROOT))
