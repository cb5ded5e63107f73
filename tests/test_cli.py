"""The command as its user meets it: in a process, in an empty folder, interrupted, mistyped.

The run of the front page itself takes minutes; here training stops after a few steps, and a small
book stands in for Shakespeare. Where a process is not the point, `main` is called in this one.
"""
import json, os, re, shlex, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

import gptlab
from gptlab.checkpoints import SafeRun, latest_checkpoint, load_checkpoint, run_lock
from gptlab.checkpoints import save_checkpoint
from gptlab.cli import main
from gptlab.data import make_stories
from gptlab.trainer import Trainer
from kills import start

COMMAND = [sys.executable, '-c', 'import sys; from gptlab.cli import main; sys.exit(main())']
PIPES = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
             encoding='utf-8')
posix = pytest.mark.skipif(os.name == 'nt', reason='Windows sends SIGINT to a whole console')


def command(*args, cwd, **env):
    line = [*COMMAND, *map(str, args)]
    return subprocess.run(line, cwd=cwd, env=os.environ | env, timeout=120, **PIPES)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a small book, and a run of three steps on it, made by an ASCII terminal"
    d = tmp_path_factory.mktemp('home')
    (d/'my book.txt').write_text(''.join(make_stories(60)) + 'Le café est fermé.\n',
                                 encoding='utf-8')
    args = ['--text', 'my book.txt', '--seconds', 60, '--vocab', 300, '--dir', 'runs/first run']
    done = command('train', *args, cwd=d, GPTLAB_MAX_STEPS='3', PYTHONIOENCODING='ascii')
    return d, done


def test_train_says_what_it_does_and_how_well(home):
    d, done = home
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    said = done.stdout
    assert said.startswith('loading PyTorch')                   # before it takes its seconds
    for word in ('corpus my book.txt', 'your own', 'sha256', 'a GPT of', '1:00 of training',
                 'nats per token', 'bits per byte', 'xz', 'uniform 8.00', '--- sample 2',
                 'gptlab sample --prompt'):
        assert word in said, f'{word!r} is missing from {said}'
    assert said.isascii() and '\\u2026' in said                 # what ASCII lacks is spelt out
    assert load_checkpoint(latest_checkpoint(d/'runs'), 'trainer')['trainer']['step'] == 3
    advised = shlex.split(said.split('go on writing with: gptlab ')[1])
    assert advised[:2] == ['sample', '--prompt']
    assert Path(d/advised[-1]) == d/'runs'/'first run'


def test_sample_goes_on_from_a_prompt(home, monkeypatch, capsys):
    monkeypatch.chdir(home[0])
    args = ['sample', '--prompt', 'Café “Once”', '--n', '20', '--seed', '1']
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert err == f'written by {Path("runs")/"first run"}, step 3\n'
    assert out.startswith('Café “Once”') and len(out) > len('Café “Once”') + 5
    again = command(*args, cwd=home[0], PYTHONIOENCODING='ascii')
    assert again.returncode == 0 and again.stderr == err, again.stderr
    assert again.stdout == out.encode('ascii', 'backslashreplace').decode()


@posix
def test_a_reader_who_has_enough(home):
    line = f'{shlex.join(COMMAND)} sample --n 200 | head -c 3'
    done = subprocess.run(line, shell=True, cwd=home[0], capture_output=True, timeout=60)
    assert done.stderr.count(b'\n') == 1 and len(done.stdout) == 3


def go_on(run, advice, capsys, monkeypatch):
    "Follow the advice of a stopped training, and check that it is the same run that goes on"
    before = load_checkpoint(latest_checkpoint(run), 'trainer')['trainer']
    assert before['step'] == len(before['log']) > 0 and before['budget'] == ('seconds', 100.)
    args = shlex.split(advice)
    assert args == ['train', '--resume', '--dir', str(run)]
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '2')
    code, said = main(args), capsys.readouterr().out
    assert code == 0 and 'nats per token' in said and '1:40 of training' in said, said
    assert f'going on from {run/"step_"}{before["step"]:06}' in said.replace(os.sep, '/')
    after = load_checkpoint(latest_checkpoint(run), 'trainer')['trainer']
    assert after['step'] == before['step'] + 2 and after['info'] == before['info']
    losses = [r['loss'] for r in before['log']]
    assert [r['loss'] for r in after['log'][:before['step']]] == losses


@posix
def test_interrupted_it_saves_and_says_how_to_go_on(home, tmp_path, monkeypatch, capsys):
    "And what it says works, also from another folder than the book's"
    run = tmp_path/'a run'
    line = ['train', '--text', 'my book.txt', '--seconds', 100, '--vocab', 300, '--dir', run]
    victim = start([*COMMAND, *line], tmp_path/'said.txt', cwd=home[0])
    victim.until(lambda: 'compiled in' in victim.said() or 'without compilation' in victim.said(),
                 pause=.05)
    time.sleep(1)
    code, out = victim.strike(signal.SIGINT), victim.said()
    assert code == 130 and 'Traceback' not in out, out
    assert 'stopped by SIGINT after step' in out and 'nats per token' not in out
    monkeypatch.chdir(tmp_path)
    go_on(run, out.split('go on with: gptlab ')[1], capsys, monkeypatch)


@posix
def test_terminated_it_saves_too(home, tmp_path, monkeypatch, capsys):
    "The signal of a batch system, raised in the third step; the status is the signal's"
    step = Trainer.one_step

    def third(self):
        step(self)
        if self.step == 3: signal.raise_signal(signal.SIGTERM)

    run, book = tmp_path/'a run', str(home[0]/'my book.txt')
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'one_step', third)
        line = ['train', '--text', book, '--seconds', '100', '--vocab', '300', '--dir', str(run)]
        assert main(line) == 143
    out = capsys.readouterr().out
    assert 'stopped by SIGTERM after step 3' in out and 'nats per token' not in out
    go_on(run, out.split('go on with: gptlab ')[1], capsys, monkeypatch)


def test_more_time_for_a_run(home, tmp_path, monkeypatch, capsys):
    "--seconds with --resume is the new length of the whole run; without --dir the latest goes on"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    book = str(home[0]/'my book.txt')
    first = ['train', '--text', book, '--vocab', '300', '--seconds', '50', '--dir', 'runs/a']
    assert main(first) == 0
    assert main(['train', '--resume', '--seconds', '70']) == 0
    state = load_checkpoint(latest_checkpoint('runs'), 'trainer')['trainer']
    assert state['step'] == 2 and state['budget'] == ('seconds', 70.)
    assert '1:10 of training' in capsys.readouterr().out


def test_two_that_begin_in_one_second_get_two_folders(home, tmp_path, monkeypatch, capsys):
    "A09, R07: each with its own settings and checkpoints"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    monkeypatch.setattr(time, 'strftime', lambda form, *a: '20260101-120000')
    for seed in ('1', '2'):
        line = ['train', '--text', str(home[0]/'my book.txt'), '--vocab', '300', '--seed', seed]
        assert main([*line, '--steps', '4']) == 0
    one, two = sorted(Path('runs').iterdir(), key=lambda p: len(p.name))
    assert two.name == f'{one.name}-2' and one.name == 'my book-20260101-120000'
    assert [json.loads((d/'settings.json').read_text())['seed'] for d in (one, two)] == [1, 2]
    assert '4 steps of training' in capsys.readouterr().out


def test_a_folder_in_use_is_left_alone(home, tmp_path, monkeypatch, capsys):
    "R07: named twice, the second says who has it, and the first's settings stay"
    monkeypatch.chdir(tmp_path)
    Path('mine').mkdir()
    with run_lock('mine'):
        line = ['train', '--text', str(home[0]/'my book.txt'), '--vocab', '300', '--dir', 'mine']
        refused(capsys, *line, said=['in use', str(os.getpid())])
    assert not Path('mine/settings.json').exists()
    shutil.copytree(home[0]/'runs'/'first run', 'old')
    with run_lock('old'): refused(capsys, 'train', '--resume', '--dir', 'old', said=['in use'])
    assert latest_checkpoint('old').name == 'step_000003'


def test_size_and_device_of_a_run(home, tmp_path, monkeypatch, capsys):
    "U11: another size is saved with the run, and taken up with it; so is the text's name"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '2')
    book = str(home[0]/'my book.txt')
    line = ['train', '--text', book, '--vocab', '300', '--steps', '9', '--dir', 'small']
    assert main([*line, '--layers', '1', '--width', '64', '--device', 'cpu']) == 0
    assert main(['train', '--resume', '--dir', 'small']) == 0
    saved = load_checkpoint(latest_checkpoint('small'), 'config', 'trainer')
    assert [saved['config'][k] for k in ('n_layers', 'n_heads', 'd_model')] == [1, 2, 64]
    assert saved['trainer']['step'] == 4 and saved['trainer']['budget'] == ('steps', 9)
    assert saved['trainer']['info']['settings']['text'] == 'my book.txt'
    capsys.readouterr()
    assert main(['sample', '--dir', 'small', '--n', '3', '--which', '2']) == 0
    assert 'step 2\n' in capsys.readouterr().err
    refused(capsys, 'sample', '--dir', 'small', '--which', '3', said=['no checkpoint 3', '2, 4'])
    refused(capsys, 'sample', '--dir', 'small', '--which', 'worst', said=["'worst'", "'best'"])


def test_runs_of_before_have_the_front_pages_size(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    shutil.copytree(home[0]/'runs'/'first run', 'old')
    settings = json.loads(Path('old/settings.json').read_text())
    kept = {k: settings[k] for k in ('text', 'seed', 'vocab')}
    Path('old/settings.json').write_text(json.dumps(kept))
    assert main(['train', '--resume', '--dir', 'old']) == 0
    assert json.loads(Path('old/settings.json').read_text()) == kept


def test_a_run_keeps_the_context_it_began_with(home, tmp_path, monkeypatch, capsys):
    "Rows and context are of one length; runs of before had a context of 256, and go on with it"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    shutil.copytree(home[0]/'runs'/'first run', 'old')
    point = latest_checkpoint('old')
    trees = load_checkpoint(point)
    assert trees['config']['context_length'] == trees['summary']['trained_length'] == 128
    trees['config']['context_length'] = 256
    save_checkpoint(point, **trees)
    assert main(['train', '--resume', '--dir', 'old']) == 0
    later = load_checkpoint(latest_checkpoint('old'), 'config', 'summary')
    assert later['config']['context_length'] == 256 and later['summary']['trained_length'] == 128
    assert 'read beyond 128' in capsys.readouterr().out


# ---- runs

def test_runs_are_listed_compared_renamed_and_deleted(home, tmp_path, monkeypatch, capsys):
    "In words the shell passes on; what is foreign is named"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home[0]/'runs'/'first run', 'runs/a')
    shutil.copytree('runs/a', 'runs/b')
    said = lambda *args: (main([*args]), capsys.readouterr().out)
    code, out = said('runs')
    assert code == 0 and len(out.splitlines()) == 3 and 'my book.txt' in out
    code, out = said('runs', 'compare', 'a', str(Path('runs')/'b'))
    assert code == 0 and out.startswith('no setting differs') and 'best bpb' in out
    assert said('runs', 'rename', 'b', 'second try')[0] == 0
    Path('runs/a/notes.txt').write_text('mine')
    refused(capsys, 'runs', 'delete', 'a', said=['notes.txt', '--force'])
    refused(capsys, 'runs', 'delete', 'b', said=['no run b'])
    assert said('runs', 'delete', 'a', '--force')[0] == said('runs', 'delete', 'second try')[0] == 0
    assert list(Path('runs').iterdir()) == [] and said('runs') == (0, '(no rows)\n')
    refused(capsys, 'runs', '--dir', 'nowhere', said=['no folder nowhere'])
    refused(capsys, 'runs', 'dance', status=2, said=["'runs dance'"])


# ---- help and mistakes of form: answered before PyTorch is loaded

QUICK = [[], ['--help'], ['-h'], ['--version'], ['tokenizer'], ['tokenizer', '--help'],
         ['train', '--help'], ['sample', '-h'], ['tokenizer', 'train', '-h'],
         ['tokenizer', 'show', '-h'], ['tokenizer', 'compare', '-h'], ['runs', '--help'],
         ['runs', 'delete', '-h'], ['trian'],
         ['tokenizer', 'trian'], ['tokenizer', 'show'], ['train', '--seconds', 'x'],
         ['train', '--seconds', '-1'], ['train', '--sceonds', '5'], ['train', '--width', '100'],
         ['tokenizer', 'train', '--out', '.']]


def test_help_and_mistakes_of_form_load_nothing_heavy():
    "U09: all in one process, which ends with the third-party packages that it has imported"
    code = '''if 1:
        import json, sys
        before = set(sys.modules)
        from gptlab.cli import main
        status = []
        for args in json.loads(sys.argv[1]):
            try: status.append(main(args))
            except SystemExit as e: status.append(e.code)
        new = {m.split('.')[0] for m in set(sys.modules) - before}
        ours = new - set(sys.stdlib_module_names) - {'__mp_main__'}
        print(json.dumps([status, sorted(ours)]))'''
    line = [sys.executable, '-c', code, json.dumps(QUICK)]
    done = subprocess.run(line, timeout=60, **PIPES)
    assert not done.returncode, done.stderr
    status, loaded = json.loads(done.stdout.splitlines()[-1])
    assert set(loaded) == {'gptlab', 'fastcore'}
    assert 'loading' not in done.stdout and 'Traceback' not in done.stderr
    assert status == [0]*13 + [2]*4 + [1, 2, 1, 1]


def test_help(capsys):
    assert main(['--help']) == main([]) == 0
    assert capsys.readouterr().out.count('COMMAND --help') == 2
    with pytest.raises(SystemExit) as e: main(['train', '--help'])
    said = capsys.readouterr().out
    assert e.value.code == 0
    for word in ('--text', '--seconds', '--resume', '--dir', 'shakespeare', 'of weights'):
        assert word in said


def test_version(capsys):
    assert main(['--version']) == 0
    assert capsys.readouterr().out == f'gptlab {gptlab.__version__}\n'


@pytest.mark.parametrize('args', ['train --seconds long', 'train --sceonds 5', 'sample --n many',
                                  'tokenizer compare', 'sample a', 'train --resume 1'])
def test_mistakes_of_form_are_the_parsers(args, capsys):
    with pytest.raises(SystemExit) as e: main(args.split())
    assert e.value.code == 2 and 'usage: gptlab ' in capsys.readouterr().err


# ---- mistakes: one line on stderr, exit status 1, no traceback

def refused(capsys, *args, status=1, said=()):
    code, (out, err) = main([*map(str, args)]), capsys.readouterr()
    assert code == status, (code, out, err)
    assert err.startswith('gptlab: ') and err.count('\n') == 1, (out, err)
    assert all(w in err for w in said), f'{said} are not all in {err}'
    return out


@pytest.mark.parametrize('args, said', [
    ('trian', ["'trian'", "did you mean 'train'?"]),
    ('dance', ["'dance'", 'train, sample'])])
def test_no_such_command(args, said, capsys):
    refused(capsys, args, status=2, said=said)


def test_mistakes(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '2')
    runs, book = home[0]/'runs', home[0]/'my book.txt'
    (tmp_path/'empty.txt').write_text('')
    (tmp_path/'latin.txt').write_bytes(b'caf\xe9')
    (tmp_path/'short.txt').write_text('To be or not')
    (tmp_path/'file').write_text('x')
    files = sorted(p.name for p in tmp_path.iterdir())

    def train(*args, said): refused(capsys, 'train', *args, said=said)
    train('--text', 'shakespere', said=["did you mean 'shakespeare'?"])
    train('--text', 'empty.txt', said=['empty.txt', 'holds no text'])
    train('--text', 'latin.txt', said=['not UTF-8', 'offset 3'])
    train('--text', 'short.txt', said=['do not fill one row', 'give more text'])
    train('--text', book, '--vocab', '100', said=['vocab_size=100', '257'])
    train('--text', book, '--seconds', '-5', said=['--seconds', 'above 0', '-5'])
    train('--text', book, '--seconds', '5', '--steps', '5', said=['--seconds or --steps'])
    train('--text', book, '--steps', '0', said=['--steps', 'at least 1'])
    train('--text', book, '--width', '100', said=['--width', 'multiple of 32', '100'])
    train('--text', book, '--layers', '0', said=['--layers', 'at least 1'])
    train('--text', book, '--device', 'tpu', said=["'tpu'", 'cpu'])
    train('--resume', said=['no checkpoint in runs', 'train one first'])
    train('--text', book, '--vocab', '300', '--dir', 'file', said=['file'])
    refused(capsys, 'sample', said=['no checkpoint in runs', 'train one first'])
    refused(capsys, 'sample', '--dir', 'nowhere', said=['nowhere'])
    assert sorted(p.name for p in tmp_path.iterdir()) == files

    train('--text', book, '--dir', runs/'first run',
          said=['already holds a run', '--resume', 'another --dir'])
    long = refused(capsys, 'sample', '--dir', runs, '--prompt', 'word '*2000,
                   said=['context holds 128', 'shorten it'])
    assert not long                                             # the prompt is not repeated first
    refused(capsys, 'sample', '--dir', runs, '--temp', '-1', said=['temperature', '-1'])
    refused(capsys, 'sample', '--dir', runs, '--k', '0', said=['at least 1'])
    refused(capsys, 'sample', '--dir', runs, '--device', 'tpu', said=["'tpu'", 'cpu'])


def test_a_run_that_cannot_be_taken_up(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    run = tmp_path/'runs'/'a'
    shutil.copytree(home[0]/'runs'/'first run', run)
    step, settings = latest_checkpoint(run), (run/'settings.json').read_text()
    blob = (step/'model.safetensors').read_bytes()
    (step/'model.safetensors').write_bytes(blob[:-5])
    for args in (['sample'], ['train', '--resume']):
        refused(capsys, *args, said=['model.safetensors', 'damaged', 'earlier checkpoint'])
    shutil.copytree(step, run/'step_000009')
    (step/'model.safetensors').write_bytes(blob)
    refused(capsys, 'train', '--resume', said=['step_000009'])
    assert main(['train', '--resume', '--dir', str(step)]) == 0  # an earlier one, when it is named
    capsys.readouterr()
    for text, words in ((settings[:-4], ['settings.json', 'damaged']),
                        ('{}', ['settings.json', '"text"'])):
        (run/'settings.json').write_text(text)
        refused(capsys, 'train', '--resume', said=words)
    (run/'settings.json').unlink()
    refused(capsys, 'train', '--resume', said=['settings.json', 'gptlab train'])
    gone = json.loads(settings) | dict(text=str(tmp_path/'gone.txt'))
    (run/'settings.json').write_text(json.dumps(gone))
    refused(capsys, 'train', '--resume', said=['gone.txt'])


def test_a_mistake_in_a_process_shows_no_traceback(tmp_path):
    done = command('train', '--seconds', '-5', cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith('gptlab: --seconds is a time') and done.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


# ---- the last line of defence, and --out

@pytest.mark.parametrize('error', [TypeError, RecursionError, MemoryError, KeyError])
def test_no_traceback_whatever_happens(error, monkeypatch, capsys):
    def fail(tok:str, text:str):
        "Fail"
        raise error('two\nlines')
    monkeypatch.setitem(main.__globals__['COMMANDS'], 'tokenizer show', fail)
    assert main(['tokenizer', 'show', 'bytes', 'x']) == 1
    said = capsys.readouterr().err
    assert said.startswith(f'gptlab: {error.__name__}: ') and said.count('\n') == 1


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    def stop():
        "Be interrupted"
        raise KeyboardInterrupt
    monkeypatch.setitem(main.__globals__['COMMANDS'], 'sample', stop)
    assert main(['sample']) == 130
    assert capsys.readouterr().err == '\ngptlab: interrupted\n'


def test_out_is_checked_before_training(tmp_path, capsys, monkeypatch):
    (tmp_path/'file').touch()
    line = ['tokenizer', 'train', '--text', 'no such text', '--out']
    for out, part in ((tmp_path, 'is a folder'), (tmp_path/'file'/'tok.json', 'cannot be written')):
        assert main([*line, str(out)]) == 1
        assert part in capsys.readouterr().err
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    line = ['tokenizer', 'train', '--text', 'stories', '--vocab', '300', '--out']
    assert main([*line, '~/new/tok.json']) == 0
    assert (tmp_path/'new'/'tok.json').is_file()


# ---- what others wrote stays text

@pytest.fixture
def hostile(monkeypatch):
    "A model that writes marks which clear a screen and fill a clipboard"
    pieces = ['a\x1b[2J', '\x1b]52;c;eA==\x07', 'b\x9b', '\u202egnp\n']
    monkeypatch.setattr('gptlab.all.generate_text', lambda *a, **kw: iter(pieces))
    return ''.join(pieces)


@pytest.mark.parametrize('terminal', [True, False])
def test_r01_a_sample_moves_no_cursor(home, hostile, terminal, monkeypatch, capsys):
    "In a terminal; a file or a pipe gets what the model wrote"
    monkeypatch.chdir(home[0])
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal)
    assert main(['sample', '--prompt', 'x\x1b[1A']) == 0
    out = capsys.readouterr().out
    if terminal:
        assert out == 'x\\x1b[1Aa\\x1b[2J\\x1b]52;c;eA==\\x07b\\x9b\\u202egnp\n\n'
    else: assert out == f'x\x1b[1A{hostile}\n'


def test_r01_a_mistake_shows_names_as_text(tmp_path, monkeypatch, capsys):
    "A file's name may hold anything but a slash"
    monkeypatch.chdir(tmp_path)
    said = 'train', '--text', 'no\x1b[2J such\nbook'
    refused(capsys, *said)
    assert main([*said]) == 1
    err = capsys.readouterr().err
    assert '\x1b' not in err and '\\x1b' in err
    refused(capsys, 'tr\x1b[2Jian', status=2)
    assert main(['tr\x1b[2Jian']) == 2 and '\x1b' not in capsys.readouterr().err


@posix
def test_r12_bytes_that_are_no_text_as_arguments(home, tmp_path):
    "One line each, whatever the locale is"
    line = [*map(os.fsencode, COMMAND)]
    for args in ([b'sample', b'--prompt', b'caf\xe9'], [b'train', b'--text', b'caf\xe9.txt'],
                 [b'tokenizer', b'show', b'bytes', b'\xff'], [b'\xff']):
        for locale in ('C', 'C.UTF-8'):
            done = subprocess.run(line + args, cwd=home[0], env=os.environ | dict(LC_ALL=locale),
                                  timeout=120, **(PIPES | dict(encoding=None, text=None)))
            assert done.returncode in (1, 2) and b'Traceback' not in done.stderr, done.stderr
            assert done.stderr.startswith(b'gptlab: ') and done.stderr.count(b'\n') == 1
    assert not (tmp_path/'runs').exists()


@posix
def test_a08_out_may_be_a_device(capsys):
    "And is one afterwards"
    assert main(['tokenizer', 'train', '--text', 'stories', '--vocab', '300', '--out',
                 '/dev/null']) == 0
    assert Path('/dev/null').is_char_device()


def test_a14_no_text_is_not_any_text(tmp_path, monkeypatch, capsys):
    'gptlab train --text "$UNSET" learns nothing that lies about'
    monkeypatch.chdir(tmp_path)
    (tmp_path/'README.md').write_text('whatever lies here '*50)
    refused(capsys, 'train', '--text', '', said=['empty'])
    refused(capsys, 'tokenizer', 'train', '--text', '', said=['empty'])
    assert [p.name for p in tmp_path.iterdir()] == ['README.md']


def test_u10_the_second_sample_continues_the_text(home, tmp_path, monkeypatch, capsys):
    "Also when the validation text begins with empty lines"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    seen = []
    monkeypatch.setattr('gptlab.all.sample_from', lambda run, prompt, n: seen.append(prompt) or '')
    docs = ['\n\n  A tale of the sea.\nIt was.\n'*40]*4
    (tmp_path/'tales.jsonl').write_text(''.join(json.dumps(dict(text=d)) + '\n' for d in docs))
    assert main(['train', '--text', 'tales.jsonl', '--vocab', '300', '--steps', '1']) == 0
    assert seen == ['', 'A tale of the sea.']


def test_r06_settings_of_others_are_looked_at(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home[0]/'runs'/'first run', 'runs/a')
    file = Path('runs/a/settings.json')
    good = json.loads(file.read_text())
    for change in (dict(text=5), dict(text=None), dict(seed='x'), dict(vocab=[]), dict(layers='x'),
                   dict(width={})):
        file.write_text(json.dumps(good | change))
        refused(capsys, 'train', '--resume', said=['settings.json', 'damaged'])
    file.write_text('['*100_000)
    refused(capsys, 'train', '--resume', said=['settings.json', 'damaged'])


def test_a22_names_of_specials_in_a_text(home, tmp_path, monkeypatch, capsys):
    "Learnt as text, and said; a mark can divide documents"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    book = (home[0]/'my book.txt').read_text(encoding='utf-8')
    Path('mine.txt').write_text('The mark <|bos|> begins.<|endoftext|>' + book, encoding='utf-8')
    line = ['train', '--text', 'mine.txt', '--vocab', '300', '--steps', '2', '--dir']
    assert main([*line, 'a']) == 0
    assert '<|endoftext|> 1 time within its text' in capsys.readouterr().out
    assert main([*line, 'b', '--separator', '<|endoftext|>']) == 0
    assert 'train   1 document' in capsys.readouterr().out
    assert json.loads(Path('b/settings.json').read_text())['separator'] == '<|endoftext|>'
    assert main(['train', '--resume', '--dir', 'b']) == 0
    out = ['tokenizer', 'train', '--text', 'mine.txt', '--vocab', '300', '--out', 'tok.json']
    assert main(out) == 0


def test_compile_is_passed_on_and_stays_with_the_run(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(SafeRun, '_compile', lambda run: asked.append(run.dir.name))
    line = ['train', '--text', str(home[0]/'my book.txt'), '--vocab', '300', '--device', 'cpu',
            '--layers', '1', '--width', '32', '--steps', '2', '--dir']
    assert main([*line, 'a']) == 0 and asked == []
    assert main([*line, 'b', '--compile']) == 0 and asked == ['b']
    for more, expected in ((['--dir', 'b'], 'bb'), (['--dir', 'a', '--compile'], 'bba'),
                           (['--dir', 'a'], 'bba')):
        assert main(['train', '--resume', '--steps', '3', *more]) == 0
        assert ''.join(asked) == expected


def test_the_precision_of_a_run_stays_with_it(home, tmp_path, monkeypatch):
    "Whatever the processor that it goes on with; a run without a word of it is in float32"
    monkeypatch.chdir(tmp_path)
    units, seen = ['AMX'], []
    monkeypatch.setattr('gptlab.all.bfloat16_units', lambda device: units[0])
    made = SafeRun._precision
    def noted(run, *args):
        seen.append(made(run, *args)[0])
        return seen[-1], False
    monkeypatch.setattr(Trainer, '_precision', noted)
    line = ['train', '--text', str(home[0]/'my book.txt'), '--vocab', '300', '--device', 'cpu',
            '--layers', '1', '--width', '32', '--steps', '2', '--dir']
    assert main([*line, 'a']) == 0 and seen == [torch.bfloat16]
    units[0] = ''
    assert main([*line, 'b']) == 0 and seen[1:] == [None]
    assert main(['train', '--resume', '--steps', '3', '--dir', 'a']) == 0
    units[0] = 'AMX'
    assert main(['train', '--resume', '--steps', '3', '--dir', 'b']) == 0
    file = Path('b/settings.json')
    settings = json.loads(file.read_text())
    assert settings.pop('dtype') == 'float32'
    file.write_text(json.dumps(settings))
    assert main(['train', '--resume', '--steps', '4', '--dir', 'b']) == 0
    assert seen[2:] == [torch.bfloat16, None, None]


# ---- plans

def test_a_plan_is_trained_and_goes_on_the_same(tmp_path, monkeypatch, capsys):
    "Interrupted and resumed, a planned run ends as one that was not, to the last bit"
    monkeypatch.chdir(tmp_path)
    line = ['train', '--text', 'stories', '--depth', '1', '--vocab', '300', '--device', 'cpu',
            '--seed', '3']
    assert main([*line, '--steps', '6', '--dir', 'whole']) == 0
    said = capsys.readouterr().out
    assert 'Plan by the rule of' in said and '6 steps of training' in said
    assert main([*line, '--steps', '6', '--dir', 'parts']) == 0
    whole = load_checkpoint(latest_checkpoint('whole'), 'model')['model']
    plan = json.loads(Path('whole/settings.json').read_text())['plan']
    assert plan['depth'] == 1 and plan['steps'] == 6
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '2')
    assert main([*line, '--steps', '6', '--dir', 'cut']) == 0
    monkeypatch.delenv('GPTLAB_MAX_STEPS')
    assert main(['train', '--resume', '--dir', 'cut']) == 0
    cut = load_checkpoint(latest_checkpoint('cut'), 'model')['model']
    assert all(torch.equal(whole[k], cut[k]) for k in whole) and whole.keys() == cut.keys()


def test_a_plan_like_a_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    line = ['train', '--text', 'stories', '--vocab', '300', '--device', 'cpu']
    assert main([*line, '--auto', '--like', '300k']) == 0
    said = capsys.readouterr().out
    n = int(re.search(r'a GPT of ([\d,]+) parameters', said)[1].replace(',', ''))
    assert 1.5e5 < n < 6e5


@pytest.mark.exhaustive
def test_a_plan_for_some_minutes(tmp_path, monkeypatch, capsys):
    "It measures this machine, and says what the run will cost"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    line = ['train', '--text', 'stories', '--vocab', '300', '--device', 'cpu']
    assert main([*line, '--minutes', '.05']) == 0
    said = capsys.readouterr().out
    assert 'Plan by the rule of' in said and 'Estimate for depth' in said


@pytest.mark.parametrize('line, why', [
    ('--auto', '--auto needs something to go by'),
    ('--depth 2 --like 10M', 'both say how large'),
    ('--depth 2 --layers 3', 'what a plan finds out'),
    ('--minutes 1 --width 64', 'what a plan finds out'),
    ('--depth 2 --seconds 9', 'counts in --minutes or --steps'),
    ('--minutes 1 --steps 9', 'not both'),
    ('--depth 0', 'depth'), ('--minutes -1', 'a time above 0'), ('--like huge', 'is no size'),
    ('--vocab 0', 'at least 1')])
def test_a_plan_that_cannot_be(line, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['train', '--text', 'stories', *line.split()]) == 1
    said = capsys.readouterr().err
    assert why in said and said.count('\n') == 1, said
    assert not Path('runs').exists()


def test_a_damaged_plan_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    line = ['train', '--text', 'stories', '--depth', '1', '--vocab', '300', '--dir', 'run']
    assert main([*line, '--device', 'cpu', '--steps', '3']) == 0
    made = json.loads(Path('run/settings.json').read_text())
    made['plan']['rows'] = 'many'
    Path('run/settings.json').write_text(json.dumps(made))
    assert main(['train', '--resume', '--dir', 'run']) == 1
    assert 'settings.json is damaged' in capsys.readouterr().err


# ---- chat and serve

def test_chat_through_a_pipe(home):
    "Each line is answered; the way out is a command or the end of the input"
    line = [*COMMAND, 'chat', '--user', 'ROMEO', '--reply', 'JULIET', '--n', '8', '--seed', '1']
    kw = dict(cwd=home[0], capture_output=True, text=True, encoding='utf-8', timeout=120)
    one = subprocess.run(line, input='Good night\n/quit\n', **kw)
    two = subprocess.run(line, input='Good night\n', **kw)
    assert one.returncode == two.returncode == 0, one.stderr
    assert 'first run' in one.stderr and 'Traceback' not in one.stderr + two.stderr
    assert one.stdout.strip() and one.stdout == two.stdout


@pytest.mark.parametrize('line, why', [
    ('--user ROMEO', 'give both parts a name'),
    ('--model x', 'belong to --remote'),
    ('--remote nonsense', 'neither an address'),
    ('--remote http://127.0.0.1:9/v1 --user A --reply B', 'a model of yours')])
def test_chat_refuses(line, why, home, monkeypatch, capsys):
    monkeypatch.chdir(home[0])
    assert main(['chat', *line.split()]) == 1
    said = capsys.readouterr().err
    assert why in said, said


def test_serve_answers_and_ends(home):
    "Over HTTP, until it is told to stop; a port that is taken is one line"
    import urllib.request
    line = [*COMMAND, 'serve', '--port', '0']
    with subprocess.Popen(line, cwd=home[0], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, encoding='utf-8') as p:
        try:
            said = ''
            while 'http://127.0.0.1:' not in said:
                assert (more := p.stdout.readline()), said
                said += more
            port = int(said.split('http://127.0.0.1:')[1].split()[0].rstrip('/'))
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/v1/models', timeout=60) as r:
                assert [m['id'] for m in json.load(r)['data']] == ['first run']
            taken = command('serve', '--port', port, cwd=home[0])
            assert taken.returncode == 1 and str(port) in taken.stderr
            assert 'Traceback' not in taken.stderr
        finally: p.terminate()
    assert command('serve', '--dir', 'nowhere', cwd=home[0]).returncode == 1
