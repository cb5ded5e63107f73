"""What data must be called: a method with nearly the right name is refused where it comes in, and
a plain iterable stays as plain as it was."""
import pytest, torch

from gptlab.corpora import cap_documents, dump_text, mixture, reshard
from gptlab.data import Source, corpus, repeatable, skip_documents
from gptlab.loader import Prefetch, fast_batches, write_tokens
from gptlab.packing import Batches, Blocks, FixedBatches, batches, check_data, tokenize
from gptlab.tokenizer import ByteTokenizer

TOK = ByteTokenizer()
DOCS = [f'Document {i}. ' + 'word '*(i % 7) for i in range(60)]


# ---- documents

class Skpi(Source):
    def __init__(self): super().__init__(lambda n: iter(DOCS[n:]))
    def skpi(self, n): return iter(())

class PlainSkpi:
    def __iter__(self): return iter(DOCS)
    def skpi(self, n): return iter(())

class Plain:
    def __iter__(self): return iter(DOCS)

class Skips(Plain):
    "A class of one's own that can go on at document n"
    def skip(self, n): return iter(DOCS[n:])

class OldList(list): pass

doors = dict(corpus=corpus,
             batches=lambda s: batches(s, TOK, T=16),
             fast_batches=lambda s: fast_batches(s, TOK, T=16, depth=0),
             train=lambda s: next(Batches(Blocks(s, TOK), 2, 16)),
             skip=lambda s: list(skip_documents(s, 3)),
             cap=lambda s: list(cap_documents(s, 20)),
             mixture=lambda s: list(mixture(dict(a=s, b=DOCS), dict(a=1, b=1))))
each_door = pytest.mark.parametrize('door', doors)
kept = pytest.mark.parametrize('kind', [Plain, Skips, lambda: OldList(DOCS), lambda: tuple(DOCS),
                                        lambda: repeatable(lambda: iter(DOCS))])

@each_door
@pytest.mark.parametrize('kind', [Skpi, PlainSkpi])
def test_a_slip_is_refused_where_documents_come_in(door, kind):
    with pytest.raises(TypeError, match=r'has skpi, which is never called: did you mean skip\?'):
        doors[door](kind())

@pytest.mark.parametrize('write', [lambda s, f: reshard(s, f, docs_per_shard=20),
                                   lambda s, f: write_tokens(s, TOK, f)])
@pytest.mark.parametrize('kind', [Skpi, PlainSkpi])
def test_nothing_is_written_after_a_slip(tmp_path, write, kind):
    with pytest.raises(TypeError, match='did you mean skip'): write(kind(), tmp_path/'x')
    assert list(tmp_path.iterdir()) == []

@each_door
@kept
def test_what_can_be_read_comes_in(door, kind): doors[door](kind())

def test_a_class_with_skip_is_asked_to_skip():
    asked = []
    class Noted(Skips):
        def skip(self, n):
            asked.append(n)
            return super().skip(n)
    assert list(skip_documents(Noted(), 50)) == DOCS[50:] and asked == [50]


# ---- batches

def train(): return Batches(tokenize(DOCS, TOK), 2, 16)

class Outer:
    "A stream around another one"
    def __init__(self): self.inner = train()
    def __iter__(self): return self
    def __next__(self): return next(self.inner)

class Resumable(Outer):
    def state_dict(self): return self.inner.state_dict()
    def load_state_dict(self, state): self.inner.load_state_dict(state)

class Dcit(Outer):
    def state_dcit(self): return {}

class Load(Outer):
    def state_dict(self): return {}
    def load_statedict(self, state): pass

class Sub(Batches):
    def load_state_dcit(self, state): return self

class Underscore(Outer):
    def _state_dict(self): return {}

SLIPS = {Dcit: ('state_dcit', 'state_dict'), Load: ('load_statedict', 'load_state_dict'),
         Sub: ('load_state_dcit', 'load_state_dict'), Underscore: ('_state_dict', 'state_dict')}
streams = dict(check_data=check_data, Prefetch=Prefetch, dump_text=lambda s: dump_text(s, TOK))
each_stream = pytest.mark.parametrize('door', streams)

@each_stream
@pytest.mark.parametrize('kind', SLIPS)
def test_a_slip_is_refused_where_batches_come_in(door, kind):
    data = kind(tokenize(DOCS, TOK), 2, 16) if kind is Sub else kind()
    wrong, right = SLIPS[kind]
    says = f'has {wrong}, which is never called: did you mean {right}'
    with pytest.raises(TypeError, match=says): streams[door](data)

@each_stream
def test_one_of_the_two_methods_is_not_enough(door):
    class Half(Outer):
        def state_dict(self): return {}
    with pytest.raises(TypeError, match='has state_dict, but is no Stateful'): streams[door](Half())

@each_stream
@pytest.mark.parametrize('kind', [train, Resumable, lambda: Prefetch(train())])
def test_a_stream_with_both_methods_comes_in(door, kind): streams[door](kind())

@each_stream
def test_a_stream_may_pass_on_what_it_is_asked(door):
    class Passes(Outer):
        def __getattr__(self, name):
            if name == 'inner': raise AttributeError(name)
            return getattr(self.inner, name)
    streams[door](Passes())

def test_a_stream_of_any_class_is_read_ahead_and_resumed():
    plain, ahead = train(), Prefetch(Resumable())
    for _ in range(5): assert torch.equal(next(plain)['ids'], next(ahead)['ids'])
    assert ahead.state_dict() == plain.state_dict()

def test_what_has_no_state_cannot_be_read_ahead():
    for data in (Outer(), iter([]), FixedBatches([])):
        with pytest.raises(TypeError, match='is no Stateful'): Prefetch(data)

def test_lists_of_batches_need_no_state():
    valid = [next(train()) for _ in range(3)]
    for data in (valid, tuple(valid), FixedBatches(valid, TOK)):
        assert 'the same every time' in check_data(data)
        assert dump_text(data, TOK).startswith('batch 0 row 0')

def test_other_methods_are_nobodys_business():
    class Own(Resumable):
        def size(self): return 3
        def seed(self): return 0
        def save_state(self): pass
    check_data(Own())

def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match='whole number'): batches(['To be', 'or not'], TOK, B=0)
