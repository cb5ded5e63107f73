"""Progress of what lasts: on a terminal, in a notebook, and nowhere else."""
import io
import os
import select
import struct
import subprocess
import sys

import pytest
from fastcore.test import test_eq as same

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
