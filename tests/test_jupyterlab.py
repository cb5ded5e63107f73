"""The front page in real JupyterLab: run all cells, see the live view move, move a slider, find no error.

What is asked of a page: the live view carries the class `gptlab-live`, and there is at least one slider. Without index.ipynb a small
page of the same kind stands in for it.
"""
import json, os, socket, subprocess, sys, time, urllib.request

import pytest

from common import NBS

pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
STAND_IN = '''import time, ipywidgets as w
view = w.HTML('start'); view.add_class('gptlab-live'); display(view)
for i in range(5): view.value = f'step {i}'; time.sleep(.1)
display(w.IntSlider(2, 0, 5))'''
QUIET = {'notebook-extension/tracker': dict(windowingMode='none'),                       # cells out of sight are in the page too
         'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True)}
WATCH = '''() => { window.seen = new Set();
  const look = () => document.querySelectorAll('.gptlab-live').forEach(e => { if (e.innerText.trim()) window.seen.add(e.innerText) });
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true}); look(); }'''
STEPS = 30                     # more than the front page's eval_every: the slider needs two samples to move between
STARTED = '() => [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].some(e => /[*0-9]/.test(e.innerText))'
DONE = '''() => { const p = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.innerText);
  return p.length > 0 && !p.some(t => t.includes('*')) && document.querySelector('[data-status="idle"]') !== null }'''


@pytest.fixture(scope='module')
def page_dir(tmp_path_factory):
    "A folder with a copy of the front page, outputs removed, so that what is seen has happened here"
    d = tmp_path_factory.mktemp('lab')
    if (NBS/'index.ipynb').exists(): nb = json.loads((NBS/'index.ipynb').read_text(encoding='utf-8'))
    else: nb = dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[dict(cell_type='code', id='a', metadata={}, source=STAND_IN)])
    for c in nb['cells']:
        if c['cell_type'] == 'code': c.update(outputs=[], execution_count=None)
    nb['metadata'] = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    (d/'index.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    return d


@pytest.fixture(scope='module')
def lab(page_dir, tmp_path_factory):
    "The address of a JupyterLab of our own, with settings of its own"
    own = tmp_path_factory.mktemp('jupyter')
    for key, value in QUIET.items():
        f = own/'settings'/'@jupyterlab'/f'{key}.jupyterlab-settings'
        f.parent.mkdir(parents=True, exist_ok=True); f.write_text(json.dumps(value))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | dict(JUPYTERLAB_SETTINGS_DIR=str(own/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(own/'workspaces'), JUPYTER_CONFIG_DIR=str(own/'config'),
                            JUPYTER_RUNTIME_DIR=str(own/'runtime'), IPYTHONDIR=str(own/'ipython'), GPTLAB_MAX_STEPS=str(STEPS), MPLBACKEND='module://matplotlib_inline.backend_inline')
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ServerApp.token=tok', f'--ServerApp.port={port}', '--ServerApp.ip=127.0.0.1',
           '--ServerApp.port_retries=0', f'--ServerApp.root_dir={page_dir}']
    log = open(own/'log.txt', 'w+', encoding='utf-8')
    server = subprocess.Popen(cmd, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=page_dir)
    try:
        for _ in range(120):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=tok', timeout=2); break
            except OSError: time.sleep(.5)
            if server.poll() is not None: break
        else: pytest.fail('JupyterLab did not start')
        if server.poll() is not None: pytest.fail(f'JupyterLab stopped: {(own/"log.txt").read_text()[-2000:]}')
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()
        log.close()


def ask(lab, what, **data):
    "The server's answer, from JSON"
    request = urllib.request.Request(f'{lab}/api/{what}?token=tok', json.dumps(data).encode() if data else None, {'Content-Type': 'application/json'})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())


def kernel(lab):
    "Start the page's kernel before the page is opened, which then finds it: on a slow machine JupyterLab would ask which one, again and again"
    ask(lab, 'sessions', path='index.ipynb', name='index.ipynb', type='notebook', kernel=dict(name='python3'))
    time.sleep(10)                                                                         # until somebody connects, its state is not told


def start(page):
    "Run → Run All Cells, from the menu. A click before the kernel is ready is lost, and on a busy machine a dialog may stand in the way"
    from playwright.sync_api import TimeoutError as Late
    met = []
    for _ in range(8):
        dialog = page.locator('.jp-Dialog')
        if dialog.count():
            met.append(dialog.first.inner_text()); print('a dialog:', met[-1])
            choices = page.locator('.jp-Dialog select option', has_text='Python 3')                # what is chosen may be "No Kernel"
            if choices.count(): page.locator('.jp-Dialog select').first.select_option(value=choices.first.get_attribute('value'))
            page.locator('.jp-Dialog .jp-mod-accept').last.click()
            page.wait_for_timeout(10_000)                                                      # what was chosen starts; a run before that would ask again
        try:
            page.locator('.lm-MenuBar-itemLabel', has_text='Run').first.click(timeout=5_000)
            page.locator('[data-command="runmenu:run-all"]').click(timeout=5_000)
            return page.wait_for_function(STARTED, timeout=15_000)
        except Late: page.keyboard.press('Escape')
    pytest.fail(f'no cell started; dialogs: {met}')


def test_front_page_in_jupyterlab(lab, chromium):
    kernel(lab)
    page = chromium.new_page(viewport=dict(width=1400, height=1000))
    page.goto(f'{lab}/lab/tree/index.ipynb?token=tok&reset', wait_until='load')
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=60_000)
    page.wait_for_selector('[data-status="idle"]', state='attached', timeout=60_000)
    page.evaluate(WATCH)
    def numbered(): return [any(ch.isdigit() for ch in e.inner_text()) for e in page.locator('.jp-CodeCell .jp-InputPrompt').all()]
    for _ in range(3):                                                                     # a kernel that was not ready loses what it was told to run
        start(page)
        for _ in range(3):                                                                 # idle between two cells is not the end
            page.wait_for_function(DONE, timeout=240_000, polling=500)
            page.wait_for_timeout(1500)
        if all(numbered()): break
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.count() == 0, errors.first.inner_text()
    prompts = [e.inner_text() for e in page.locator('.jp-CodeCell .jp-InputPrompt').all()]
    assert all(any(ch.isdigit() for ch in p) for p in prompts), f'not every cell ran: {prompts}'
    seen = page.evaluate('() => [...window.seen]')
    assert len(seen) > 1, f'the live view did not move: {seen}'

    handle = page.locator('.noUi-handle').first
    handle.scroll_into_view_if_needed()
    before = handle.get_attribute('aria-valuetext')
    for key in ('ArrowRight', 'ArrowLeft'):                                                # at its end it can only go back
        handle.focus(); page.keyboard.press(key); page.wait_for_timeout(300)
        if handle.get_attribute('aria-valuetext') != before: break
    assert handle.get_attribute('aria-valuetext') != before, 'the slider did not move'
    page.wait_for_timeout(500)
    assert errors.count() == 0, errors.first.inner_text()
    page.close()
