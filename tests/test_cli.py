"""The command as its user meets it: in a process, in an empty folder, interrupted, and with typing mistakes.

The run of the front page itself takes minutes; here training stops after a few steps, and a small book stands in for Shakespeare.
"""
import json, os, shlex, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

from gptlab.checkpoints import checkpoints_in, latest, load_checkpoint
from gptlab.cli import main
from gptlab.data import stories

COMMAND = [sys.executable, '-c', 'import sys; from gptlab.cli import main; sys.exit(main())']
posix = pytest.mark.skipif(os.name == 'nt', reason='Windows sends SIGINT to a whole console')


def command(*args, cwd, **env):
    return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, env=os.environ | env, capture_output=True, text=True, encoding='utf-8', timeout=120, stdin=subprocess.DEVNULL)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a small book, and a run of three steps on it, made by a terminal that knows only ASCII"
    d = tmp_path_factory.mktemp('home')
    (d/'my book.txt').write_text(''.join(stories(60)) + 'Le café est fermé.\n', encoding='utf-8')
    done = command('train', '--text', 'my book.txt', '--seconds', 60, '--vocab', 300, '--dir', 'runs/first run', cwd=d, GPTLAB_MAX_STEPS='3', PYTHONIOENCODING='ascii')
    return d, done


def test_train_says_what_it_does_and_how_well(home):
    d, done = home
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    for word in ('corpus my book.txt', 'your own', 'sha256', 'a GPT of', '1:00 of training', 'nats per token', 'bits per byte', 'xz', 'uniform 8.00', '--- sample 2', 'gptlab sample --prompt'):
        assert word in done.stdout, f'{word!r} is missing from {done.stdout}'
    assert done.stdout.isascii() and '\\u2026' in done.stdout                               # what ASCII lacks is spelt out
    assert load_checkpoint(latest(d/'runs'), 'trainer')['trainer']['step'] == 3
    advised = shlex.split(done.stdout.split('go on writing with: gptlab ')[1])
    assert advised[:2] == ['sample', '--prompt'] and Path(d/advised[-1]) == d/'runs'/'first run'


def test_sample_goes_on_from_a_prompt(home):
    d, _ = home
    done = command('sample', '--prompt', 'Café “Once”', '--n', 20, '--seed', 1, cwd=d)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith('Café “Once”') and len(done.stdout) > len('Café “Once”') + 5
    again = command('sample', '--prompt', 'Café “Once”', '--n', 20, '--seed', 1, cwd=d, PYTHONIOENCODING='ascii')
    assert again.returncode == 0 and not again.stderr and again.stdout.isascii() and again.stdout.startswith('Caf\\xe9 \\u201cOnce\\u201d')


@posix
def test_a_reader_who_has_enough(home):
    done = subprocess.run(f'{shlex.join(COMMAND)} sample --n 200 | head -c 3', shell=True, cwd=home[0], capture_output=True, timeout=60)
    assert not done.stderr and len(done.stdout) == 3


def interrupt(d, *args, how=signal.SIGINT):
    "Start the command, wait until it trains, and stop it"
    p = subprocess.Popen([*COMMAND, *map(str, args)], cwd=d, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding='utf-8', stdin=subprocess.DEVNULL)
    lines = []
    for line in p.stdout:
        lines.append(line)
        if 'of training' in line: break
    time.sleep(1)
    p.send_signal(how)
    out, err = p.communicate(timeout=60)
    return p.returncode, ''.join(lines) + out, err


@posix
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_saves_and_says_how_to_go_on(home, tmp_path, how, monkeypatch, capsys):
    "And what it says works, also from another folder than the book's"
    code, out, err = interrupt(home[0], 'train', '--text', 'my book.txt', '--seconds', 100, '--vocab', 300, '--dir', tmp_path/'a run', how=how)
    assert code == 130 and 'Traceback' not in err, out + err
    assert f'stopped by {how.name} after step' in out and 'nats per token' not in out
    before = load_checkpoint(latest(tmp_path/'a run'), 'trainer')['trainer']
    assert before['step'] == len(before['log']) > 0 and before['budget'] == ('seconds', 100.)
    args = shlex.split(out.split('go on with: gptlab ')[1])
    assert args == ['train', '--resume', '--dir', str(tmp_path/'a run')]
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('GPTLAB_MAX_STEPS', '2')
    code, said = main(args), capsys.readouterr().out
    assert code == 0 and 'nats per token' in said and '1:40 of training' in said, said
    after = load_checkpoint(latest(tmp_path/'a run'), 'trainer')['trainer']
    assert after['step'] == before['step'] + 2 and [r['loss'] for r in after['log'][:before['step']]] == [r['loss'] for r in before['log']]
    assert after['info'] == before['info']                                                  # still the same run


def test_more_time_for_a_run(home, tmp_path, monkeypatch, capsys):
    "--seconds with --resume is the new length of the whole run; without --dir the latest run goes on"
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    assert main(['train', '--text', str(home[0]/'my book.txt'), '--vocab', '300', '--seconds', '50', '--dir', 'runs/a']) == 0
    assert main(['train', '--resume', '--seconds', '70']) == 0
    state = load_checkpoint(latest('runs'), 'trainer')['trainer']
    assert state['step'] == 2 and state['budget'] == ('seconds', 70.) and '1:10 of training' in capsys.readouterr().out


# ---- mistakes: one line on stderr, exit status 1, no traceback

def refused(capsys, *args, status=1, said=()):
    code, (out, err) = main([*map(str, args)]), capsys.readouterr()
    assert code == status and err.startswith('gptlab: ') and err.count('\n') == 1, (code, out, err)
    assert all(w in err for w in said), f'{said} are not all in {err}'
    return out


def test_mistakes(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('GPTLAB_MAX_STEPS', '2')
    d, book = home[0], home[0]/'my book.txt'
    (tmp_path/'empty.txt').write_text(''); (tmp_path/'latin.txt').write_bytes(b'caf\xe9'); (tmp_path/'short.txt').write_text('To be or not'); (tmp_path/'file').write_text('x')
    refused(capsys, 'trian', status=2, said=["'trian'", "did you mean 'train'?"])
    refused(capsys, 'dance', status=2, said=["'dance'", 'train, sample'])
    refused(capsys, 'train', '--text', 'shakespere', said=["did you mean 'shakespeare'?"])
    refused(capsys, 'train', '--text', 'empty.txt', said=['empty.txt', 'holds no text'])
    refused(capsys, 'train', '--text', 'latin.txt', said=['not UTF-8', 'offset 3'])
    refused(capsys, 'train', '--text', 'short.txt', said=['do not fill one row', 'give more text'])
    refused(capsys, 'train', '--text', book, '--vocab', '100', said=['vocab_size=100', '257'])
    refused(capsys, 'train', '--text', book, '--seconds', '-5', said=['--seconds', 'above 0', '-5'])
    refused(capsys, 'train', '--resume', said=['no checkpoint in runs', 'train one first'])
    refused(capsys, 'sample', said=['no checkpoint in runs', 'train one first'])
    refused(capsys, 'sample', '--dir', 'nowhere', said=['nowhere'])
    refused(capsys, 'train', '--text', book, '--vocab', '300', '--dir', 'file', said=['file'])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['empty.txt', 'file', 'latin.txt', 'short.txt']
    refused(capsys, 'train', '--text', book, '--dir', d/'runs'/'first run', said=['already holds a run', '--resume', 'another --dir'])
    long = refused(capsys, 'sample', '--dir', d/'runs', '--prompt', 'word '*2000, said=['context holds 256', 'shorten it'])
    assert not long                                                                         # the prompt is not repeated first
    refused(capsys, 'sample', '--dir', d/'runs', '--temp', '-1', said=['temperature', '-1'])
    refused(capsys, 'sample', '--dir', d/'runs', '--k', '0', said=['at least 1'])
    refused(capsys, 'sample', '--dir', d/'runs', '--device', 'tpu', said=["'tpu'", 'cpu'])


def test_mistakes_of_form_are_the_parsers(capsys):
    for args in (['train', '--seconds', 'long'], ['train', '--sceonds', '5'], ['sample', '--n', 'many']):
        with pytest.raises(SystemExit) as e: main(args)
        assert e.value.code == 2 and 'usage: gptlab ' in capsys.readouterr().err


def test_help(capsys):
    assert main(['--help']) == main([]) == 0 and capsys.readouterr().out.count('COMMAND --help') == 2
    with pytest.raises(SystemExit) as e: main(['train', '--help'])
    said = capsys.readouterr().out
    assert e.value.code == 0 and all(w in said for w in ('--text', '--seconds', '--resume', '--dir', 'shakespeare'))


def test_a_run_that_cannot_be_taken_up(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    run = tmp_path/'runs'/'a'
    shutil.copytree(home[0]/'runs'/'first run', run)
    step, settings = latest(run), (run/'settings.json').read_text()
    blob = (step/'model.safetensors').read_bytes()
    (step/'model.safetensors').write_bytes(blob[:-5])
    for args in (['sample'], ['train', '--resume']): refused(capsys, *args, said=['model.safetensors', 'damaged', 'earlier checkpoint'])
    shutil.copytree(step, run/'step_000009')
    (step/'model.safetensors').write_bytes(blob)
    refused(capsys, 'train', '--resume', said=['step_000009'])
    assert main(['train', '--resume', '--dir', str(step)]) == 0                             # an earlier one goes on, when it is named
    capsys.readouterr()
    for text, words in ((settings[:-4], ['settings.json', 'damaged']), ('{}', ['settings.json', '"text"'])):
        (run/'settings.json').write_text(text)
        refused(capsys, 'train', '--resume', said=words)
    (run/'settings.json').unlink()
    refused(capsys, 'train', '--resume', said=['settings.json', 'gptlab train'])
    (run/'settings.json').write_text(json.dumps(json.loads(settings) | dict(text=str(tmp_path/'gone.txt'))))
    refused(capsys, 'train', '--resume', said=['gone.txt'])


def test_a_mistake_in_a_process_shows_no_traceback(tmp_path):
    done = command('sample', cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout and done.stderr.count('\n') == 1 and done.stderr.startswith('gptlab: there is no checkpoint in runs')
    assert list(tmp_path.iterdir()) == []


# ---- the last line of defence, and --out

@pytest.mark.parametrize('error', [TypeError, RecursionError, MemoryError, KeyError])
def test_no_traceback_whatever_happens(error, monkeypatch, capsys):
    def fail(tok:str, text:str): "Fail"; raise error('two\nlines')
    monkeypatch.setitem(main.__globals__['COMMANDS'], 'tokenizer show', fail)
    assert main(['tokenizer', 'show', 'bytes', 'x']) == 1
    said = capsys.readouterr().err
    assert said.startswith(f'gptlab: {error.__name__}: ') and said.count('\n') == 1

def test_out_is_checked_before_training(tmp_path, capsys, monkeypatch):
    (tmp_path/'file').touch()
    for out, part in ((tmp_path, 'is a folder'), (tmp_path/'file'/'tok.json', 'cannot be written')):
        assert main(['tokenizer', 'train', '--text', 'no such text', '--out', str(out)]) == 1
        assert part in capsys.readouterr().err
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.setenv('USERPROFILE', str(tmp_path))
    assert main(['tokenizer', 'train', '--text', 'stories', '--vocab', '300', '--out', '~/new/tok.json']) == 0
    assert (tmp_path/'new'/'tok.json').is_file()
