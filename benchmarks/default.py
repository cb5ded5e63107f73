"""All that depends on the default model, made again: run this when the front page's model changes.

The front page and the pages that train its model run from top to bottom, their outputs are saved;
the README's picture is taken from the front page; its run is scored in rows, with a stride and
prequentially (results/score.json). Wants a quiet machine and ten minutes. What stands in words,
such as the README's figures, it prints, and you write.

    python benchmarks/default.py                  all of it
    python benchmarks/default.py --only index     one page, or several
    python benchmarks/default.py --list           which pages these are
"""
import argparse, base64, io, json, re, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
TRAINS = re.compile(r'\bfront_page_(run|parts)\(|new_folder\(.runs/front-page')


def pages():
    "The front page, then the notebooks that train its model or read its scores"
    found = [p for p in sorted(NBS.glob('*.ipynb')) if any(map(TRAINS.search, sources(p)))]
    return sorted(found, key=lambda p: p.stem != 'index') + [NBS/'experiments'/'speedrun.ipynb']


def sources(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


def run(path):
    "Run a notebook in its folder, by the rules of nbdev_test, and save its outputs"
    from execnb.nbio import write_nb
    from execnb.shell import CaptureShell
    from fastcore.foundation import working_directory
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    skip = {*get_config().tst_flags.split()}
    nb = NBProcessor(path, rm_directives=False, process=True).nb
    def skipped(cell):
        if cell.cell_type != 'code': return True
        found = getattr(cell, 'directives_', {}) or {}
        return found.get('eval:', [''])[0].lower() == 'false' or bool(skip & found.keys())
    with working_directory(path.parent):
        CaptureShell(path).run_all(nb, exc_stop=True, preproc=skipped)
    clean_nb(nb)
    for c in nb.cells:
        for out in c.get('outputs', []):
            png = out.get('data', {}).get('image/png')
            if png: out['data']['image/png'] = in_palette(''.join(png))
    write_nb(nb, path)


def in_palette(png):
    "A figure in base64 with at most 128 colours, which is half as large"
    from PIL import Image
    made = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    picture.quantize(128).save(made, 'PNG', optimize=True)
    return base64.b64encode(made.getvalue()).decode()


def picture():
    "The front page's figure as the README shows it"
    nb = json.loads((NBS/'index.ipynb').read_text(encoding='utf-8'))
    for c in nb['cells']:
        if 'front_figure(run' not in ''.join(c['source']): continue
        png = next(o['data']['image/png'] for o in c['outputs'] if 'image/png' in o.get('data', {}))
        (NBS/'images'/'frontpage.png').write_bytes(base64.b64decode(''.join(png)))


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', metavar='PAGE', help='names of pages, such as index')
    p.add_argument('--list', action='store_true')
    args = p.parse_args()
    known = {q.stem: q for q in pages()}
    unknown = {*(args.only or ())} - known.keys()
    if unknown: p.error(f'no such page: {", ".join(unknown)}; there are {", ".join(known)}')
    if args.list: return print('\n'.join(str(q.relative_to(ROOT)) for q in known.values()))
    for name in args.only or known:
        start = time.perf_counter()
        print(f'{name} …', end=' ', flush=True)
        run(known[name])
        print(f'{time.perf_counter() - start:.0f} s', flush=True)
    if args.only and 'index' not in args.only: return
    picture()
    newest = max((NBS/'runs').glob('front-page*'), key=lambda q: q.stat().st_mtime)
    score = [sys.executable, str(ROOT/'benchmarks'/'score.py'), str(newest), '--lr', '3e-4']
    subprocess.run(score, check=True)
    said = [''.join(o.get('text', [])) for c in json.loads((NBS/'index.ipynb').read_text())['cells']
            for o in c.get('outputs', []) if o.get('name') == 'stdout']
    print('the front page says:', *[s for s in said if 'bits per byte' in s], sep='\n')
    print('now write these figures into README.md, benchmarks/README.md and CHANGELOG.md')


if __name__ == '__main__': main()
