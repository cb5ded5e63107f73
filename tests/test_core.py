"""Progress of what lasts: on a terminal, in a notebook, and nowhere else."""
import io
import os
import select
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
from fastcore.test import test_eq as same

from common import refuses
from gptlab import core
from gptlab.core import show_progress

COUNT = '''
import time
from gptlab.core import show_progress
for _ in show_progress(range(30), 'counting', unit='documents', delay=.1): time.sleep(.01)
'''


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    "As where a person works, whatever this process was told"
    for name in ('IN_TEST', 'GPTLAB_SILENT'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cell(monkeypatch):
    "What a notebook's cell shows: a list for each output, of the texts that it held in turn"
    outputs = []

    class Handle(list):
        def update(self, data, raw):
            self.append(data['text/plain'])

    def display(data, raw, display_id):
        outputs.append(Handle([data['text/plain']]))
        return outputs[-1]

    import IPython.display
    monkeypatch.setattr(IPython.display, 'display', display)
    monkeypatch.setattr(core, 'in_kernel', lambda: True)
    return outputs


def slowly(bar):
    "Go through a bar so that each item is shown"
    bar.mininterval = 0
    return list(bar)


def test_a_terminal_gets_one_line_and_it_is_erased():
    pty, fcntl, termios = (pytest.importorskip(m) for m in ('pty', 'fcntl', 'termios'))
    leader, follower = pty.openpty()
    # a terminal of no width gets nothing from tqdm
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    done = subprocess.run([sys.executable, '-c', COUNT], stderr=follower, stdout=subprocess.PIPE,
                          timeout=120)
    assert select.select([leader], [], [], 10)[0], 'the terminal got nothing'
    said = os.read(leader, 100_000).decode()
    os.close(follower)
    os.close(leader)
    lines = [line for line in said.split('\r') if line.strip()]
    assert done.returncode == 0 and done.stdout == b''
    assert lines and all(line.startswith('counting: ') for line in lines)
    assert 'of 30 documents' in lines[-1] and lines[-1].rstrip().endswith('left')
    assert '\n' not in said and not said.split('\r')[-1].strip()


def test_a_pipe_gets_nothing():
    done = subprocess.run([sys.executable, '-c', COUNT], capture_output=True, timeout=120)
    same([done.returncode, done.stdout, done.stderr], [0, b'', b''])


def test_a_cell_gets_one_output_and_it_ends_empty(cell):
    same(slowly(show_progress('abcd', 'reading', delay=1e-9)), list('abcd'))
    (texts,) = cell
    assert '1 of 4, ' in ''.join(texts) and texts[-1] == '' and '\r' not in ''.join(texts)


def test_two_at_once_have_an_output_each(cell):
    for _ in slowly(show_progress(range(2), 'outer', delay=1e-9)):
        slowly(show_progress(range(3), 'inner', delay=1e-9))
    assert len(cell) == 3 and all(texts[-1] == '' for texts in cell)


def test_an_error_erases_the_line(cell):
    with pytest.raises(OverflowError):
        with show_progress(range(5), 'reading', delay=1e-9) as bar:
            bar.mininterval = 0
            for i in bar:
                if i == 3:
                    raise OverflowError
    assert len(cell[0]) > 1 and cell[0][-1] == ''


@pytest.mark.parametrize('quiet', ['verbose', 'IN_TEST', 'GPTLAB_SILENT', 'soon'])
def test_silent_when_told_or_soon_over(cell, monkeypatch, quiet):
    if quiet.isupper():
        monkeypatch.setenv(quiet, '1')
    kw = dict(verbose=quiet != 'verbose', delay=2. if quiet == 'soon' else 1e-9)
    same(slowly(show_progress(range(5), 'reading', **kw)), list(range(5)))
    same(cell, [])


@pytest.mark.parametrize('total, unit, want', [
    (48, 'files', 'reading:  25%|#####               | 12 of 48 files, 00:15 left'),
    (48, '', 'reading:  25%|#####               | 12 of 48, 00:15 left'),
    (48, 'B', 'reading:  25%|#####               | 12.0 of 48.0B, 00:15 left'),
    (None, 'files', 'reading: 12 files, 00:05 so far'),
    (None, '', 'reading: 12, 00:05 so far')])
def test_the_line(total, unit, want):
    screen = io.StringIO()
    screen.isatty = lambda: True
    with show_progress(None, 'reading', total, unit, file=screen) as bar:
        bar.update(12)
        same(bar.format_meter(**bar.format_dict | dict(elapsed=5.)), want)


def test_the_length_of_what_has_none_is_unknown(cell):
    slowly(show_progress(iter(range(3)), 'reading', unit='lines', delay=1e-9))
    assert 'reading: 1 lines, 00:00 so far' in cell[0]


def test_nothing_to_go_through():
    same(list(show_progress([], 'reading')), [])


# ---- what others wrote, and where we write

def test_text_of_others_is_only_text():
    hostile = '<img src=x onerror="a()">\x1b]52;c;eA==\x07\x9b2J\u202egnp.exe\ud800'
    hostile += '|`*_[a](b)\r\n# no'
    for show in (core.plain_text, core.html_text, core.markdown_text):
        shown = show(hostile)
        assert all(c.isprintable() or c in '\n\t' for c in shown), shown
        shown.encode()                                             # no half of a pair is left
    assert '<' not in core.html_text(hostile) and '"' not in core.html_text(hostile)
    line = core.markdown_text(hostile)
    assert '<' not in line and '\n' not in line and r'\|\`\*\_\[a\](b)\\r \# no' in line
    same(core.plain_text('tab\tand\nline, ä 漢 🙂'), 'tab\tand\nline, ä 漢 🙂')


@pytest.mark.parametrize('value, bounds, kind, said', [
    ('x', {}, TypeError, "lr must be a number, not 'x'"),
    (True, {}, TypeError, 'lr must be a number, not True'),
    (None, dict(low=0), TypeError, 'lr must be a number of at least 0, not None'),
    (1.5, dict(whole=True), TypeError, 'lr must be a whole number, not 1.5'),
    (float('nan'), dict(above=0), ValueError, 'lr must be a number above 0, not nan'),
    (float('inf'), {}, ValueError, 'lr must be a number, not inf'),
    (0, dict(above=0), ValueError, 'lr must be a number above 0, not 0'),
    (2, dict(low=0, high=1), ValueError, 'of at least 0 and of at most 1, not 2')])
def test_a_number_is_looked_at_where_it_comes_in(value, bounds, kind, said):
    with pytest.raises(kind) as e:
        core.check_number('lr', value, **bounds)
    assert said in str(e.value)


def test_a_number_of_numpy_is_a_number():
    got = [core.check_number('n', v) for v in (np.int64(3), np.float32(.5), 3, .5)]
    same(got, [3, .5, 3, .5])
    same([type(v) for v in got], [int, float, int, float])


def test_a_path_is_what_the_user_means(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    same(core.user_path('~/run'), tmp_path/'run')
    for bad, kind in (('', ValueError), (None, TypeError), (3, TypeError), ([], TypeError)):
        with pytest.raises(kind, match='path'):
            core.user_path(bad)


@pytest.mark.skipif(os.name == 'nt', reason='links and modes of POSIX')
def test_a08_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path):
    real, link, dangling = (tmp_path/n for n in ('real', 'link', 'dangling'))
    real.write_text('old')
    real.chmod(0o640)
    link.symlink_to(real)
    core.atomic_write(link, 'new')
    assert link.is_symlink() and real.read_text() == 'new' and real.stat().st_mode & 0o777 == 0o640
    dangling.symlink_to(tmp_path/'later')
    core.atomic_write(dangling, 'new')
    assert dangling.is_symlink() and (tmp_path/'later').read_text() == 'new'
    (tmp_path/'loop').symlink_to(tmp_path/'loop')
    with pytest.raises(OSError, match='leads to itself'):
        core.atomic_write(tmp_path/'loop', 'x')
    assert (tmp_path/'loop').is_symlink()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='pipes of POSIX')
def test_a08_what_is_no_file_is_written_to_and_stays(tmp_path):
    core.atomic_write('/dev/null', 'x')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    pipe = tmp_path/'pipe'
    os.mkfifo(pipe)
    with subprocess.Popen(['cat', pipe], stdout=subprocess.PIPE) as reader:
        core.atomic_write(pipe, 'through')
        same(reader.communicate(timeout=60)[0], b'through')
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a08_a_file_never_takes_the_place_of_a_folder(tmp_path):
    folder = tmp_path/'thesis'
    folder.mkdir()
    (folder/'chapter1.txt').write_text('x')
    with pytest.raises(OSError, match='thesis'):
        core.atomic_write(folder, 'y')
    same([p.name for p in tmp_path.rglob('*')], ['thesis', 'chapter1.txt'])


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may write everything')
def test_a_read_only_file_is_not_replaced(tmp_path):
    (tmp_path/'f').write_text('x')
    (tmp_path/'f').chmod(0o444)
    with pytest.raises(OSError, match='read-only'):
        core.atomic_write(tmp_path/'f', 'y')


# ---- R11: what makes no sense is told by name

@pytest.mark.parametrize('given', ['abc', '1.5', '-1', '0', '٣', ' '])
def test_r11_a_limit_of_steps_that_is_none(monkeypatch, given):
    monkeypatch.setenv('GPTLAB_MAX_STEPS', given)
    with pytest.raises(ValueError, match='GPTLAB_MAX_STEPS is a whole number of at least 1'):
        core.step_limit()


def test_a_limit_of_steps(monkeypatch):
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '7')
    same(core.step_limit(), 7)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '')
    same(core.step_limit(), None)


@pytest.mark.parametrize('seed', ['x', None, 1.5, True, [1], float('nan')], ids=repr)
def test_r11_a_seed_that_is_no_number(seed):
    with pytest.raises(TypeError, match='a seed is a whole number'): core.set_seed(seed)


def test_a_seed_of_numpys_is_the_same_seed():
    import random
    import torch
    drawn = []
    for seed in (3, np.int64(3)):
        same(core.set_seed(seed), 3)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    same(*drawn)


@pytest.mark.parametrize('name', ['', 'abacus', 'cpu:', 'cpu:x', 'cuda:x', 0, 'cpu:-1'], ids=repr)
def test_r11_a_device_that_is_none(name):
    with pytest.raises(ValueError, match='cannot be used here; there is'): core.best_device(name)


@pytest.mark.parametrize('kw, said', [
    (dict(items=3), 'items'), (dict(total=-1), 'total'), (dict(total='x'), 'total'),
    (dict(delay='x'), 'delay'), (dict(delay=float('nan')), 'delay'), (dict(file=3), 'file')],
    ids=str)
def test_r11_progress_of_nothing(kw, said):
    with pytest.raises((TypeError, ValueError), match=said): show_progress(**kw)


@pytest.mark.parametrize('path, said', [
    (None, 'a path is expected'), (3, 'a path is expected'), (b'x', 'a path is expected'),
    ('', 'empty'), ('a\0b', 'NUL')], ids=repr)
def test_r11_what_is_no_path(path, said):
    for f in (core.user_path, core.file_sha256, lambda p: core.atomic_write(p, 'x')):
        with pytest.raises((TypeError, ValueError), match=said): f(path)


def test_r12_without_a_home_the_message_names_the_variable(monkeypatch, tmp_path):
    def none(): raise RuntimeError('Could not determine home directory.')
    monkeypatch.delenv('GPTLAB_CACHE', raising=False)
    monkeypatch.setattr(core.Path, 'home', none)
    with pytest.raises(OSError, match='GPTLAB_CACHE'): core.cache_dir()


def test_a24_the_cache_below_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('GPTLAB_CACHE', '~/kept')
    same(core.cache_dir(), tmp_path/'kept')


def test_r11_numbers_below_a_bound():
    same(core.check_number('p', .5, low=0, below=1), .5)
    with pytest.raises(ValueError, match='p must be a number of at least 0 and below 1, not 1'):
        core.check_number('p', 1, low=0, below=1)


def test_a_device_and_a_server_that_are_not_here(monkeypatch, capsys):
    import torch
    same(core.needs('cuda'), core.best_device().type == 'cuda')
    with refuses(ValueError, 'there is', 'cpu'): core.best_device('abacus')
    with refuses(ValueError, 'the name of a server', "'abacus'"): core.needs('abacus')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    same(core.needs('no.such.server.invalid'), False)
    assert 'an answer from no.such.server.invalid' in capsys.readouterr().out
    same(core.best_device('cpu'), torch.device('cpu'))


def test_a_run_says_who_made_it():
    one, other = core.run_info(dict(a=1, b=2)), core.run_info(dict(b=2, a=1))
    same(one['config_hash'], other['config_hash'])
    assert one['run_id'] != other['run_id']
    assert core.run_info(dict(a=2))['config_hash'] != one['config_hash']
    same(sorted(one), ['commit', 'config_hash', 'date', 'machine', 'python', 'run_id', 'threads',
                       'torch'])


class Mine: pass


def test_a_part_is_found_by_its_name_and_nothing_else_is():
    from torch import nn
    same(core.dotted_name(nn.LayerNorm), 'torch.nn.modules.normalization.LayerNorm')
    assert core.resolve_name(core.dotted_name(nn.LayerNorm)) is nn.LayerNorm
    with refuses(ValueError, 'parts=dict(Mine=Mine)'): core.resolve_name(core.dotted_name(Mine))
    with refuses(ValueError, 'parts=dict(system=system)'): core.resolve_name('os.system')
    assert core.resolve_name('__main__.Mine', parts=dict(Mine=Mine)) is Mine
    # a part that moved is found
    assert core.resolve_name('gptlab.attentions.MLA').__name__ == 'MLA'
