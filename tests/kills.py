"""One harness for processes that are struck: start a victim, wait for its moment, send it a signal,
see what it left behind.

`python tests/kills.py 300` kills the runs of test_resume.py so many times, and tells what it saw.
"""
import collections, contextlib, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path


class Victim:
    "A process whose output goes into a file; its code after it has ended is negative for a signal"
    def __init__(self, pid, said, wait):
        self.pid, self.said_in, self._wait, self.code = pid, Path(said), wait, None

    def said(self):
        "What it has printed so far"
        return (self.said_in.read_text(encoding='utf-8', errors='replace') if self.said_in.exists()
                else '')

    def until(self, ready, seconds=60, pause=.001):
        "Wait for the moment to strike, which ready() tells; fails when it takes too long"
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, (f'the moment did not come in {seconds} s: '
                                            f'{self.said()[-2000:]}')
            time.sleep(pause)
        return self

    def strike(self, how=signal.SIGKILL):
        "Send a signal, unless it has ended by itself, and wait for the end"
        with contextlib.suppress(ProcessLookupError): os.kill(self.pid, how)
        return self.end()

    def end(self):
        "Wait for the end; returns the exit code"
        if self.code is None: self.code = self._wait()
        return self.code


def start(argv, said, **kw):
    "A victim in a session of its own, so that the processes it starts can be found"
    with open(said, 'wb') as out:
        p = subprocess.Popen([*map(str, argv)], stdin=subprocess.DEVNULL, stdout=out,
                             stderr=subprocess.STDOUT, start_new_session=True, **kw)
    return Victim(p.pid, said, lambda: p.wait(120))


def family(pid):
    """The processes that a victim's session still holds, one a line; those that have ended and wait
    to be noticed do not count"""
    out = subprocess.run(['ps', '-o', 'pid=,stat=,args=', '-s', str(pid)], capture_output=True,
                         text=True).stdout
    return [line for line in out.splitlines() if line.split()[1][0] != 'Z']


def ends(pid, seconds=10):
    "Whether all of a session's processes are gone after some seconds at most"
    end = time.monotonic() + seconds
    while family(pid) and time.monotonic() < end: time.sleep(.05)
    return not family(pid)


class Forks:
    """Many victims without many imports: one process runs a script once, and each victim is a fork
    of it.

    The script defines `go(*args)`, with all imports and preparations above it; arguments are
    strings.
    """
    LOOP = '''
import os, sys, traceback

def _fork(_said, *_args):
    if (_pid := os.fork()): return _pid
    _fd = os.open(_said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(_fd, 1)
    os.dup2(_fd, 2)
    _code = 1
    try: go(*_args); _code = 0
    except SystemExit as _e: _code = _e.code
    except BaseException: traceback.print_exc()
    sys.stdout.flush(); sys.stderr.flush(); os._exit(_code)
for _line in sys.stdin:
    _pids = [_fork(*_one.split('|')) for _one in _line.rstrip('\\n').split('\\t')]
    print(*_pids, flush=True)
    for _pid in _pids: print(os.waitstatus_to_exitcode(os.waitpid(_pid, 0)[1]), flush=True)
'''

    def __init__(self, folder, script):
        self.folder, self.n = Path(folder), 0
        (self.folder/'victims.py').write_text(script + self.LOOP, encoding='utf-8')
        self.process = subprocess.Popen([sys.executable, self.folder/'victims.py'],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, *args):
        "A victim that runs go(*args); one at a time, so wait for its end before the next"
        return self.start_all([args])[0]

    def start_all(self, calls):
        "Victims that run at once, one for each list of arguments; wait for them in this order"
        said = [self.folder/f'said_{self.n + i}.txt' for i in range(len(calls))]
        self.n += len(calls)
        lines = ['|'.join(map(str, (where, *args))) for where, args in zip(said, calls)]
        self.process.stdin.write('\t'.join(lines) + '\n')
        self.process.stdin.flush()
        pids = map(int, self.process.stdout.readline().split())
        code = lambda: int(self.process.stdout.readline())
        return [Victim(pid, where, code) for pid, where in zip(pids, said)]

    def close(self):
        "End the process that victims are forked from"
        self.process.kill()
        self.process.communicate()


def many_kills(n, seed=0):
    "Kill runs until n kills hit; each run is killed again and again, ended, and compared"
    import test_resume as t
    hit, runs, different, begun = collections.Counter(), 0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        forks = Forks(folder, t.SCRIPT)
        whole, rng = t.Whole(forks), random.Random(seed)
        while hit.total() < n:
            case = t.KILLED[runs % len(t.KILLED)]
            runs, run = runs + 1, forks.folder/f'{case}_{runs}'
            for _ in range(rng.randrange(2, 7)):
                aim = rng.choice(['start', 'step', 'save', 'prune'])
                victim = t.struck(forks, rng, case, run, signal.SIGKILL, aim)
                if victim.code != -signal.SIGKILL: break
                left = t.at_work(run)
                hit[f'in a {" and a ".join(sorted(left))}' if left else 'elsewhere'] += 1
            bad = t.differences(forks, whole, case, run)
            if bad: different.append((case, bad[:5]))
            shutil.rmtree(run)
            print(f'{hit.total()} kills ({dict(hit)}) in {runs} runs, {len(different)} differ',
                  flush=True)
        forks.close()
    print(f'{time.monotonic() - begun:.0f} s', *different, sep='\n')
    return not different


if __name__ == '__main__': sys.exit(not many_kills(*map(int, sys.argv[1:])))
