"""The table of renamed names, and what it does to source and to values.

A row of the table is old<TAB>new<TAB>kind; empty lines and lines that begin with # are skipped.

- name: a function, class, attribute, variable; wherever it stands as an identifier
- keyword: an argument given by name in a call, as in f(old=1) or dict(old=1)
- string: a whole string, as in corpus('old')
- module: a dotted path, as in `gptlab.old`, of a module or of something that moved

Today's facts are translated back, new to old, for an older tree. What the older tree answers is
compared with every name translated forward, old to new.
"""
import ast
import io
import keyword
import re
import tokenize
from pathlib import Path

KINDS = 'name', 'keyword', 'string', 'module'
WORD = re.compile(r'[^\W\d]\w*')


def rows_of(path):
    "The rows of a file of three columns divided by tabs; one that is absent has none"
    path = Path(path)
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    rows = [(n, s.split('\t')) for n, s in enumerate(lines, 1) if s.strip() and s[0] != '#']
    for n, row in rows:
        if len(row) != 3:
            raise ValueError(f'{path}, line {n}: expected three columns divided by tabs')
    return [row for _, row in rows]


class Table:
    "Renamed names; raises ValueError for a row that cannot be read, or a name that is there twice"

    def __init__(self, rows=()):
        self.old = {kind: {} for kind in KINDS}      # new -> old
        self.new = {kind: {} for kind in KINDS}      # old -> new
        for old, new, kind in rows:
            self._add(old, new, kind)

    def _add(self, old, new, kind):
        if kind not in KINDS:
            raise ValueError(f'the kind of {old} is one of {", ".join(KINDS)}, not {kind!r}')
        if old in self.new[kind] or new in self.old[kind]:
            raise ValueError(f'the table has {old} or {new} as {kind} twice')
        if kind in ('name', 'keyword') and not (old.isidentifier() and new.isidentifier()):
            raise ValueError(f'{old} and {new} are not both identifiers')
        self.old[kind][new], self.new[kind][old] = old, new

    @classmethod
    def read(cls, path):
        "The table in a file; one that is absent is empty"
        return cls(rows_of(path))

    def back(self, source):
        "Today's source in the names of the older tree"
        if not any(self.old.values()):
            return source
        return _Source(source).replaced(self)

    def path_back(self, dotted):
        return _moved(dotted, self.old['module'])

    # ---- values

    def same(self, old, new):
        "Are the two values equal, once every name in the old one is translated forward?"
        return not self.differences(old, new)

    def differences(self, old, new, at=''):
        "Where two values differ, as lines of text; at most a few"
        if isinstance(old, dict) and isinstance(new, dict):
            return self._differing_dicts(old, new, at)
        if isinstance(old, list) and isinstance(new, list):
            if len(old) != len(new):
                return [f'{at or "value"}: {len(old)} entries, now {len(new)}']
            pairs = enumerate(zip(old, new, strict=True))
            return [d for i, (a, b) in pairs for d in self.differences(a, b, f'{at}[{i}]')][:5]
        if isinstance(old, str) and isinstance(new, str):
            equal = self._same_text(old, new)
        else:
            equal = type(old) is type(new) and old == new
        return [] if equal else [f'{at or "value"}: {_short(old)}, now {_short(new)}']

    def _differing_dicts(self, old, new, at):
        found, left = [], dict(new)
        for k, v in old.items():
            name = k if k in left else next((n for n in left if self._same_text(k, n)), None)
            if name is None:
                found.append(f'{at}.{k}: only in the old tree')
            else:
                found += self.differences(v, left.pop(name), f'{at}.{name}')
        found += [f'{at}.{k}: only in the new tree' for k in left]
        return found[:5]

    def forward(self, text):
        "A string of the older tree with all its names translated: what is shown"
        moved = self.new['string'].get(text, _moved(text, self.new['module']))
        return WORD.sub(lambda m: self._word(m[0]), moved)

    def _word(self, word):
        return self.new['name'].get(word, self.new['keyword'].get(word, word))

    def _same_text(self, old, new):
        "A string may hold names (dotted, or as in `f(a=1)`): each word is as it was, or translated"
        if self.new['string'].get(old) == new:
            return True
        old = _moved(old, self.new['module'])
        if old == new:
            return True
        a, b = WORD.findall(old), WORD.findall(new)
        if WORD.sub('', old) != WORD.sub('', new) or len(a) != len(b):
            return False
        return all(x == y or y in self._words(x) for x, y in zip(a, b, strict=True))

    def _words(self, word):
        return [self.new[kind].get(word) for kind in ('name', 'keyword')]


def _short(value):
    text = repr(value)
    return text if len(text) < 60 else text[:57] + '…'


def _moved(dotted, moves):
    "A dotted path after the longest move that applies to it or to what it lies in"
    for path in sorted(moves, key=len, reverse=True):
        if dotted == path or dotted.startswith(path + '.'):
            return moves[path] + dotted[len(path):]
    return dotted


class _Source:
    "Python source as tokens; strings and identifiers are replaced where they stand"

    def __init__(self, source):
        self.lines = source.splitlines(keepends=True)
        skip = tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT
        every = tokenize.generate_tokens(io.StringIO(source).readline)
        self.tokens = [t for t in every if t.type not in skip]
        self.done = set()

    def replaced(self, table):
        "The source after all replacements, the last one first"
        changes = [*self._paths(table), *self._words(table)]
        for start, end, text in sorted(changes, reverse=True):
            self._put(start, end, text)
        return ''.join(self.lines)

    def _put(self, start, end, text):
        (row, a), (last, b) = start, end
        head, tail = self.lines[row-1][:a], self.lines[last-1][b:]
        self.lines[row-1:last] = [head + text + tail] + ['']*(last - row)

    def _paths(self, table):
        "Dotted paths that begin with a moved module"
        for i, t in enumerate(self.tokens):
            if t.type != tokenize.NAME or i and self.tokens[i-1].string == '.':
                continue
            chain = self._chain(i)
            for n in range(len(chain), 0, -1):
                path = '.'.join(c.string for c in chain[:n])
                if path in table.old['module']:
                    self.done |= {c.start for c in chain[:n]}
                    yield t.start, chain[n-1].end, table.old['module'][path]
                    break

    def _chain(self, i):
        chain, tokens = [self.tokens[i]], self.tokens
        for dot, name in zip(tokens[i+1::2], tokens[i+2::2], strict=False):
            if dot.string != '.' or name.type != tokenize.NAME:
                break
            chain.append(name)
        return chain

    def _words(self, table):
        calls = []                                   # for each open bracket: is it a call's?
        for i, t in enumerate(self.tokens):
            if t.string in ('(', '[', '{') and t.type == tokenize.OP:
                calls.append(t.string == '(' and self._is_call(i))
            elif t.string in (')', ']', '}') and t.type == tokenize.OP:
                calls.pop()
            elif t.type == tokenize.NAME and t.start not in self.done:
                kind = 'keyword' if calls and calls[-1] and self._by_name(i) else 'name'
                if t.string in table.old[kind]:
                    yield t.start, t.end, table.old[kind][t.string]
            elif t.type == tokenize.STRING:
                yield from _string(t, table)

    def _is_call(self, i):
        "Does the bracket at i open the arguments of a call, not of a definition?"
        before = self.tokens[i-1] if i else None
        if before is None or not (before.type == tokenize.NAME or before.string in (')', ']')):
            return False
        if keyword.iskeyword(before.string):
            return False
        return not (i > 1 and self.tokens[i-2].string in ('def', 'class'))

    def _by_name(self, i):
        "Is the name at i one that an argument is given by?"
        after = self.tokens[i+1].string if i + 1 < len(self.tokens) else ''
        return after == '=' and self.tokens[i-1].string in ('(', ',')


def _string(t, table):
    "The replacement of a string, if there is one"
    prefix = re.match(r'\w*', t.string)[0].lower()
    if 'f' in prefix:
        words = set(WORD.findall(t.string)) & set(table.old['name'])
        if words:
            names = ', '.join(sorted(words))
            raise ValueError(f'line {t.start[0]}: {names} stands in an f-string, where it cannot '
                             'be told from text; write it outside')
        return
    value = ast.literal_eval(t.string)
    if isinstance(value, str):
        old = table.old['string'].get(value, table.path_back(value))
        if old != value:
            yield t.start, t.end, repr(old)
