"""Every test runs with one thread, with a cache of its own, and never as if inside nbdev_test.

The suite runs in two workers where pytest-xdist is installed, so whatever a worker starts must not
take both cores.
"""
import functools, itertools, os, random, shutil, signal, sys
from pathlib import Path

import pytest

# nothing is fetched: corpora fall back to what is built in
os.environ.update(OMP_NUM_THREADS='1', MPLBACKEND='agg', TOKENIZERS_PARALLELISM='false',
                  HF_HUB_OFFLINE='1', PYTHONIOENCODING='utf-8', PIP_NO_INDEX='1',
                  PIP_DISABLE_PIP_VERSION_CHECK='1')
# started in the background, or under nohup, Python ignores these; a run then goes on, as it should
for number in (signal.SIGINT, getattr(signal, 'SIGHUP', signal.SIGINT)):
    if signal.getsignal(number) == signal.SIG_IGN:
        stop = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, stop)
# set, it makes nbdev_export do nothing at all
os.environ.pop('IN_TEST', None)
# console scripts of this environment, also when it is not activated
BIN = str(Path(sys.executable).parent)
if BIN not in os.environ['PATH'].split(os.pathsep):
    os.environ['PATH'] = BIN + os.pathsep + os.environ['PATH']


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
    exe = (shutil.which('chromium') or shutil.which('chromium-browser')
           or shutil.which('google-chrome'))
    if not exe: pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)')
    playwright = pytest.importorskip('playwright.sync_api',
                                     reason='playwright is not installed: pip install playwright')
    flags = ('--no-sandbox --disable-gpu --disable-quic --no-first-run '
             '--disable-background-networking --disable-component-update --disable-sync')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, args=flags.split())
        yield browser
        browser.close()


# ---- chance

_drawn = itertools.count(1)

def pytest_runtest_setup(item):
    """What a test draws is the same in every run, whichever tests ran before it in its worker

    Generators without a seed differ from one another in a test, and not from run to run.
    """
    global _drawn
    _drawn = itertools.count(1)
    random.seed(0)
    if 'numpy' in sys.modules: sys.modules['numpy'].random.seed(0)
    if 'torch' in sys.modules: sys.modules['torch'].manual_seed(0)
    _seed_generators()


def _seed_generators():
    "`make_generator(None)` takes the next number, in every module that has it"
    generation = sys.modules.get('gptlab.generation')
    if generation is None or hasattr(generation.make_generator, 'numbered'): return
    real = generation.make_generator
    @functools.wraps(real)
    def numbered(seed=None, *args, **kw):
        return real(next(_drawn) if seed is None else seed, *args, **kw)
    numbered.numbered = True
    for module in list(sys.modules.values()):
        if getattr(module, '__dict__', {}).get('make_generator') is real:
            module.make_generator = numbered


# ---- workers

@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    "Two workers, unless -n or --pdb is given; without pytest-xdist, this process alone"
    given = config.option
    if not config.pluginmanager.hasplugin('xdist') or hasattr(config, 'workerinput'): return
    if given.numprocesses is None and not given.usepdb: given.numprocesses = 2


# ---- two tiers: what people wait for, and what .ci/run does besides

# minutes on two quiet cores; CONTRIBUTING.md says what each may hold
BUDGET = dict(quick=12, exhaustive=22)


def pytest_addoption(parser):
    group = parser.getgroup('gptlab')
    group.addoption('--exhaustive', action='store_true', help='run what plain pytest leaves out: '
                        'other recipes, whole grids, kernels, kills and fuzzing')
    group.addoption('--count', type=int, metavar='N',
                    help='run each test that draws at random N times, and each sampled grid on N '
                         'cases')
    group.addoption('--seed', type=int, default=0, metavar='S',
                    help='the first seed of tests that draw at random')


def pytest_configure(config):
    mark = lambda text: config.addinivalue_line('markers', text)
    mark('exhaustive: only with --exhaustive')
    mark('grid(quick=1, sample=None): of the cases of a parametrized test `quick` run always, the '
         'others with --exhaustive, or a seeded sample of them')
    mark('repeat(quick=1, exhaustive=10): a test that draws at random takes `seed`, and runs so '
         'often in each tier')


def pytest_generate_tests(metafunc):
    """Each seed of a repeated test is a test of its own, so that two workers share them and a
    failure names its seed"""
    if not (mark := metafunc.definition.get_closest_marker('repeat')): return
    config, quick, more = (metafunc.config, mark.kwargs.get('quick', 1),
                           mark.kwargs.get('exhaustive', 10))
    n = config.getoption('--count') or (more if config.getoption('--exhaustive') else quick)
    metafunc.parametrize('seed', range(config.getoption('--seed'), config.getoption('--seed') + n))


def quick_cases(n, quick):
    "Which of n cases run always: the first, and others spread evenly over the rest"
    quick = min(n, quick)
    return {i*n//quick for i in range(quick)}


def in_tier(items, exhaustive, count=None, seed=0):
    "The tests of a tier, in their order"
    grids, keep = {}, set()
    for item in items:
        if (mark := item.get_closest_marker('grid')):
            grids.setdefault(item.nodeid.split('[')[0], (mark, []))[1].append(item)
        elif (bool(item.get_closest_marker('exhaustive')) == exhaustive
              or item.get_closest_marker('repeat')):
            keep.add(item)
    for name, (mark, cases) in grids.items():
        first = quick_cases(len(cases), mark.kwargs.get('quick', 1))
        chosen = [c for i, c in enumerate(cases) if (i in first) != exhaustive]
        n = (count or mark.kwargs.get('sample')) if exhaustive else None
        keep.update(chosen if not n or n >= len(chosen)
                    else random.Random(f'{name} {seed}').sample(chosen, n))
    return [i for i in items if i in keep]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    # asked for by name, it runs
    if any('::' in a for a in config.args): return
    kept = in_tier(items, config.getoption('--exhaustive'), config.getoption('--count'),
                   config.getoption('--seed'))
    config.hook.pytest_deselected(items=[i for i in items if i not in set(kept)])
    items[:] = kept


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests that share nothing go to whichever worker is free; those of any other file stay
    together and share what they build"""
    from xdist.scheduler import LoadScopeScheduling
    alone = ('test_notebooks.py', 'test_kernels.py')

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if any(f in nodeid for f in alone) else nodeid.split('::')[0]

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter, config):
    "What the tier cost, beside what it may cost"
    tier, start = ('exhaustive' if config.getoption('--exhaustive') else 'quick',
                   getattr(terminalreporter, '_session_start', None))
    took = start.elapsed().seconds if start else float('nan')
    terminalreporter.line(f'the {tier} tier took {took/60:.1f} minutes; whole, on two quiet cores, '
                          f'it may take {BUDGET[tier]}')
