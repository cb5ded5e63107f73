"""Every test runs with one thread, with a cache of its own, and never as if inside nbdev_test.

The suite runs in two workers (pyproject.toml: -n 2), so whatever a worker starts must not take both cores.
"""
import os, shutil, sys
from pathlib import Path

import pytest

os.environ.update(OMP_NUM_THREADS='1', MPLBACKEND='agg', TOKENIZERS_PARALLELISM='false', HF_HUB_OFFLINE='1', PYTHONIOENCODING='utf-8',
                  PIP_NO_INDEX='1', PIP_DISABLE_PIP_VERSION_CHECK='1')           # nothing is fetched: corpora fall back to what is built in
os.environ.pop('IN_TEST', None)                          # set, it makes nbdev_export do nothing at all
BIN = str(Path(sys.executable).parent)                   # console scripts of this environment, also when it is not activated
if BIN not in os.environ['PATH'].split(os.pathsep): os.environ['PATH'] = BIN + os.pathsep + os.environ['PATH']


@pytest.fixture(autouse=True, scope='session')
def own_cache(tmp_path_factory):
    "Nobody's real cache is read or written"
    before = os.environ.get('GPTLAB_CACHE')
    os.environ['GPTLAB_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield Path(os.environ['GPTLAB_CACHE'])
    if before is None: del os.environ['GPTLAB_CACHE']
    else: os.environ['GPTLAB_CACHE'] = before


@pytest.fixture(scope='session')
def chromium():
    "A headless browser; without Chromium or playwright the test says that it skipped"
    exe = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not exe: pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)')
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, args=flags.split())
        yield browser
        browser.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Each notebook goes to whichever worker is free; the tests of any other file stay together and share what they build"
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid): return nodeid if 'test_notebooks.py' in nodeid else nodeid.split('::')[0]

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter):
    "The time of each notebook, slowest first"
    reports = [r for key in ('passed', 'failed') for r in terminalreporter.stats.get(key, []) if r.when == 'call' and 'test_notebooks.py' in r.nodeid]
    if reports:
        terminalreporter.section('notebooks')
        for r in sorted(reports, key=lambda r: -r.duration): terminalreporter.line(f'{r.duration:6.1f} s  {r.nodeid.split("[")[-1].rstrip("]")}')
        terminalreporter.line(f'{sum(r.duration for r in reports):6.1f} s  in all')
