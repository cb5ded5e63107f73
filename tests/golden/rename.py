#!/usr/bin/env python3
"""Rename public names in the whole working tree by a table: python tests/golden/rename.py TABLE
[--dry]

TABLE has rows old<TAB>new<TAB>name, as renames.tsv. Only what means the module-level name changes:
uses, imports, definitions, and attributes of a module (`gptlab.data.skip`). A local variable, an
argument, a keyword or an attribute of an object that happens to be called the same stays.
Notebooks' code cells, tests, benchmarks and the inline code of prose are rewritten in place; run
nbdev_export afterwards. A module-level variable of the same name in a lesson is reported and left
to a person.
"""
import argparse
import ast
import io
import json
import re
import symtable
import tokenize
from pathlib import Path

from translate import rows_of

ROOT = Path(__file__).resolve().parents[2]
MAGIC = re.compile(r'^\s*[!%]')


def blanked(source):
    "The source with magics and shell lines made comments, so that Python reads it"
    return ''.join('#' + line[1:] if MAGIC.match(line) else line
                   for line in source.splitlines(keepends=True))


class Uses(ast.NodeVisitor):
    "Where a file means one of the module-level names: (line, column) of each identifier"

    def __init__(self, source, names, modules, home=()):
        self.names, self.modules, self.found, self.bound = names, modules, set(), set()
        # the names that this file defines for everybody
        self.home = set(home)
        # imported or defined; names inside f-strings, by lines
        self.taken, self.within = set(), []
        self.tree = ast.parse(source)
        self.stack = [symtable.symtable(source, 'file', 'exec')]
        self.visit(self.tree)

    def is_global(self, name):
        for table in reversed(self.stack):
            if table.get_type() == 'class' and table is not self.stack[-1]: continue
            try: symbol = table.lookup(name)
            except KeyError: continue
            if table.get_type() == 'module' or symbol.is_global(): return True
            if symbol.is_imported(): return True
            if symbol.is_local() or symbol.is_free(): return False
        return True

    def visit_FunctionDef(self, node):
        for outer in [*node.decorator_list, *node.args.defaults,
                      *filter(None, node.args.kw_defaults)]:
            self.visit(outer)
        first = node.args.posonlyargs + node.args.args
        patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
        if len(self.stack) == 1 and node.name in self.names and not patched: self.define(node)
        for a in first + node.args.kwonlyargs:
            if a.annotation: self.visit(a.annotation)
        child = self.child(node, node.name)
        if child: self.stack.append(child)
        for part in node.body: self.visit(part)
        if child: self.stack.pop()

    def define(self, node):
        if node.name in self.home: self.taken.add(node.name)
        else: self.bound.add(node.name)                      # a lesson's own helper
        self.found.add((node.lineno, node.name))

    def visit_JoinedStr(self, node):
        outer, self.found = self.found, set()
        self.generic_visit(node)
        self.within.append((node.lineno, node.end_lineno, {name for _, name in self.found}))
        self.found = outer

    def visit_Lambda(self, node):
        for d in [*node.args.defaults, *filter(None, node.args.kw_defaults)]: self.visit(d)
        child = self.child(node, 'lambda')
        if child: self.stack.append(child)
        self.visit(node.body)
        if child: self.stack.pop()

    def child(self, node, name):
        used = self.__dict__.setdefault('_used', set())
        for c in self.stack[-1].get_children():
            if c.get_name() == name and c.get_lineno() == node.lineno and c.get_id() not in used:
                used.add(c.get_id())
                return c
        return None

    def visit_ClassDef(self, node):
        for outer in [*node.decorator_list, *node.bases, *[k.value for k in node.keywords]]:
            self.visit(outer)
        if len(self.stack) == 1 and node.name in self.names: self.define(node)
        child = self.child(node, node.name)
        if child: self.stack.append(child)
        for part in node.body: self.visit(part)
        if child: self.stack.pop()

    def comprehension(self, node, parts):
        self.visit(node.generators[0].iter)
        child = self.child(node,
                           {ast.ListComp: 'listcomp', ast.SetComp: 'setcomp',
                            ast.DictComp: 'dictcomp', ast.GeneratorExp: 'genexpr'}[type(node)])
        if child: self.stack.append(child)
        for part in parts: self.visit(part)
        for i, g in enumerate(node.generators):
            if i: self.visit(g.iter)
            self.visit(g.target)
            for test in g.ifs: self.visit(test)
        if child: self.stack.pop()

    def visit_ListComp(self, node): self.comprehension(node, [node.elt])
    def visit_SetComp(self, node): self.comprehension(node, [node.elt])
    def visit_GeneratorExp(self, node): self.comprehension(node, [node.elt])
    def visit_DictComp(self, node): self.comprehension(node, [node.key, node.value])

    def visit_Name(self, node):
        if node.id not in self.names or not self.is_global(node.id): return
        if isinstance(node.ctx, ast.Store) and len(self.stack) == 1: self.bound.add(node.id)
        self.found.add((node.lineno, node.id))

    def visit_Attribute(self, node):
        self.visit(node.value)
        if (node.attr in self.names and isinstance(node.value, ast.Name)
            and node.value.id in self.modules):
            self.found.add((node.end_lineno, '.' + node.attr))

    def visit_ImportFrom(self, node):
        if not (node.module or '').startswith('gptlab') and not node.level: return
        for a in node.names:
            if a.name not in self.names: continue
            self.taken.add(a.name)
            self.found.add((a.lineno, a.name))

    def meant(self, line, name):
        """Does the identifier on this line mean ours? A name that a file binds itself, and never
        imports, is its own"""
        own = name in self.bound and name not in self.taken
        return (line, name) in self.found and not own

    def meant_within(self, line):
        "The names of ours inside the f-strings of a line"
        found = [names for a, b, names in self.within if a <= line <= b]
        return {n for names in found for n in names if n not in self.bound or n in self.taken}


def renamed(source, new, modules, home=()):
    "The source with the table applied, and the names that a lesson binds itself"
    plain = blanked(source)
    uses = Uses(plain, set(new), modules, home)
    out = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(plain).readline))
    edits = []
    for i, t in enumerate(tokens):
        if t.type in (tokenize.STRING, tokenize.COMMENT):
            text = prose(t.string, new)
            if re.match(r'[rR]?[fF]', t.string):
                text = braces(text, new, uses.meant_within(t.start[0]))
            if text != t.string: edits.append((t, text))
            continue
        if t.type != tokenize.NAME or t.string not in new: continue
        dotted = tokens[i-1].string == '.'
        keyword = (not dotted and i + 1 < len(tokens) and tokens[i+1].string == '='
                   and tokens[i-1].string in ('(', ',', '\n'))
        if keyword and depth(tokens, i): continue
        if uses.meant(t.start[0], ('.' if dotted else '') + t.string):
            edits.append((t, new[t.string]))
    for t, text in reversed(edits):
        (first, a), (last, b) = t.start, t.end
        whole = out[first-1][:a] + text + out[last-1][b:]
        out[first-1:last] = whole.splitlines(keepends=True)
    return ''.join(out), uses.bound & uses.taken, len(edits)


def braces(text, new, meant):
    "An f-string with names renamed in its expressions"
    if not meant: return text
    found = re.compile(r'(?<![\w.\'"])(' + '|'.join(map(re.escape, sorted(meant)))
                       + r')(?![\w\'"=])')
    return re.sub(r'\{[^{}]*\}', lambda m: found.sub(lambda k: new[k[1]], m[0]), text)


def depth(tokens, i):
    "Whether token i stands inside parentheses"
    return sum({'(': 1, ')': -1}.get(t.string, 0) for t in tokens[:i]) > 0


def prose(text, new):
    "Markdown with the names renamed where they stand as inline code, alone or called"
    def one(m):
        return re.sub(r'(?<![\w.=\'"-])(' + '|'.join(new) + r')(?=\(|`|$)', lambda k: new[k[1]],
                      m[0])

    return re.sub(r'`[^`\n]+`', one, text)


def modules_of(source):
    "Names under which gptlab's modules are imported"
    return (set(re.findall(r'from gptlab import (\w+)', source))
            | set(re.findall(r'import gptlab\.(\w+)', source)))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('table', type=Path)
    p.add_argument('--dry', action='store_true', help='say what would change')
    args = p.parse_args()
    new = {a: b for a, b, kind in rows_of(args.table) if kind == 'name'}
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if any(q.startswith(('.', '_')) for q in path.relative_to(ROOT/'nbs').parts): continue
        notebook(path, new, args.dry)
    for path in [*sorted((ROOT/'tests').rglob('*.py')), *sorted((ROOT/'benchmarks').glob('*.py'))]:
        if path.parent.name == 'golden' and path.name in ('rename.py', 'translate.py'): continue
        source = path.read_text(encoding='utf-8')
        text, bound, n = renamed(source, new, modules_of(source))
        if bound: print(f'{path.relative_to(ROOT)} binds {sorted(bound)} itself')
        if text != source:
            print(f'{path.relative_to(ROOT)}: {n}')
            if not args.dry: path.write_text(text, encoding='utf-8')
    for name in ('README.md', 'CONTRIBUTING.md'):
        text = (ROOT/name).read_text(encoding='utf-8')
        if prose(text, new) != text:
            print(name)
            if not args.dry: (ROOT/name).write_text(prose(text, new), encoding='utf-8')


def notebook(path, new, dry):
    "Rename in one notebook: its code as one module, its prose as inline code"
    nb = json.loads(path.read_text(encoding='utf-8'))
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    joint, ends = '', []
    for c in code:
        joint += ''.join(c['source']).rstrip('\n') + '\n'
        ends.append(joint.count('\n'))
    exported = [''.join(c['source']) for c in code
                if re.match(r'#\| exports?\b', ''.join(c['source']))]
    home = set(re.findall(r'^(?:def|class) (\w+)', '\n'.join(exported), re.M)) & set(new)
    text, bound, n = renamed(joint, new, modules_of(joint), home)
    if bound: print(f'{path.relative_to(ROOT)} binds {sorted(bound)} itself')
    lines, start = text.splitlines(keepends=True), 0
    for c, end in zip(code, ends, strict=True):
        c['source'] = ''.join(lines[start:end]).rstrip('\n').splitlines(keepends=True)
        start = end
    for c in nb['cells']:
        if c['cell_type'] == 'markdown':
            c['source'] = prose(''.join(c['source']), new).splitlines(keepends=True)
    fresh = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n'
    if fresh == path.read_text(encoding='utf-8'): return
    print(f'{path.relative_to(ROOT)}: {n}')
    if not dry: path.write_text(fresh, encoding='utf-8')


if __name__ == '__main__': main()
