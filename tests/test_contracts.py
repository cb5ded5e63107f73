"""What a part must be called: a method with nearly the right name is refused at the door, and a
plain part stays as plain as it was."""
import copy, math, pickle
from functools import partial

import pytest, torch
from torch import nn

from gptlab.attention import (Attention, Cache, Layer, LayerCache, LearnedPositions, Mask, Position,
                              RoPE, Seq, check_attn, once)
from gptlab.attentions import OpenAttention, cache_bytes
from gptlab.core import check_contract
from gptlab.linear_attentions import DeltaAttention, MLA
from gptlab.model import GPT, GPTConfig, swap
from gptlab.moe import MoD, MoE
from gptlab.positions import ALiBi, LinearBias, YaRN, extend_context
from gptlab.tokenizer import (ByteTokenizer, CharTokenizer, Tokenizer, as_tokenizer,
                              check_tokenizer, fuzz_texts, show_tokens)
from gptlab.bpe import BPE, show_vocab
from gptlab.tokenizers import (AsciiTokenizer, ByT5Tokenizer, RankTokenizer,
                               StrippedAsciiTokenizer, bytes_per_token, compare_tokenizers,
                               encode_special, renyi_efficiency, show_all)

DIMS = dict(vocab_size=11, context_length=24, n_layers=2, n_heads=2, d_model=16)


# ---- slips, at every door

class Rotat(Position):
    def __init__(self, D, n_heads): pass
    def rotat(self, seq, q, k): return q, k

class Bais(Position):
    def __init__(self, D, n_heads): pass
    def bais(self, seq, kpos): return 0.*kpos[:,None,None,:]

class PlainRotat:
    def __init__(self, D, n_heads): pass
    def rotat(self, seq, q, k): return q, k

class Half(RoPE):
    def _rotate(self, seq, q, k): return q, k

class Maks(Attention):
    def maks(self, seq, kpos, kdocs): return Mask()

class OldMask(Attention):
    def _mask(self, seq, kpos, kdocs): return None

class Prepar(Attention):
    def prepar(self, seq, x): pass

class Newcache(nn.Module):
    def __init__(self, C, n_heads, n_kv_heads=None):
        super().__init__()
        self.o = nn.Linear(C, C)
    def forward(self, x, seq): return self.o(x)
    def newcache(self): return Cache()

SLIPS = {'rotat': (partial(Attention, pos=Rotat), 'rotate'),
         'bais': (partial(Attention, pos=Bais), 'bias'),
         'rotat of a plain class': (partial(Attention, pos=PlainRotat), 'rotate'),
         '_rotate': (partial(Attention, pos=Half), 'rotate'), 'maks': (Maks, 'mask'),
         '_mask': (OldMask, 'mask'), 'prepar': (Prepar, 'prepare'),
         'newcache': (Newcache, 'new_cache')}
slips = pytest.mark.parametrize('name', SLIPS)

def refused(name):
    return pytest.raises(TypeError, match=rf'has {name.split()[0]}, which is never called: did you '
                                          rf'mean {SLIPS[name][1]}\?')

@slips
def test_check_attn_refuses_a_slip(name):
    with refused(name): check_attn(SLIPS[name][0])

@slips
def test_a_model_refuses_a_slip(name):
    with refused(name): GPT(GPTConfig(**DIMS, attn=[Attention, SLIPS[name][0]]))

@slips
def test_swap_refuses_a_slip_and_changes_nothing(name):
    model = GPT(GPTConfig(**DIMS))
    before = [b.attn for b in model.blocks]
    with refused(name): swap(model, Attention, lambda old: SLIPS[name][0](16, 2))
    assert [b.attn for b in model.blocks] == before

@pytest.mark.parametrize('make', [OpenAttention, MLA, DeltaAttention])
@pytest.mark.parametrize('pos, near', [(Rotat, 'rotate'), (Bais, 'bias'), (PlainRotat, 'rotate')])
def test_every_attention_asks_its_scheme(make, pos, near):
    with pytest.raises(TypeError, match=f'did you mean {near}'): make(16, 2, pos=pos)

def test_a_slip_deep_inside_a_block_is_found():
    class Slow(MoE):
        def mixflops(self, T): return 0
    with pytest.raises(TypeError, match='did you mean mix_flops'):
        GPT(GPTConfig(**DIMS, block=MoD, mlp=Slow))

def test_a_method_that_is_patched_in_later_is_found_too():
    class Late(Attention): pass
    GPT(GPTConfig(**DIMS, attn=Late))
    Late.preparee = lambda self, seq, x: None
    with pytest.raises(TypeError, match='did you mean prepare'): GPT(GPTConfig(**DIMS, attn=Late))


# ---- what is no slip

def test_who_knows_the_right_name_may_have_one_like_it():
    class Careful(Attention):
        def mask(self, seq, kpos, kdocs): return self._mask(seq, kpos, kdocs)
        def _mask(self, seq, kpos, kdocs): return super().mask(seq, kpos, kdocs)
        def masked(self): return True
    assert check_attn(Careful).ok

def test_modules_of_torch_are_no_layers_and_look_like_none():
    made = (nn.Linear(2, 2), nn.Embedding(2, 2), nn.LayerNorm(2), nn.Sequential(), nn.ModuleList(),
            nn.Conv1d(1, 1, 1), nn.GRU(2, 2), nn.MultiheadAttention(4, 2),
            nn.TransformerEncoderLayer(4, 2, 8), nn.Dropout(), nn.BatchNorm1d(2),
            nn.ParameterList(), nn.Identity())
    for m in made: assert check_contract(m, Layer, needed=False) is m

def test_a_plain_module_is_an_attention():
    class RunningMean(nn.Module):
        def __init__(self, C, n_heads, n_kv_heads=None):
            super().__init__()
            self.v, self.o = nn.Linear(C, C), nn.Linear(C, C)
        def forward(self, x, seq):
            # (B,T,T)
            m = seq.mask(seq.pos, seq.docs, table=True).table[:,0].float()
            return self.o(m @ self.v(x) / m.sum(-1, keepdim=True).clamp(min=1))
    report = check_attn(RunningMean)
    assert (report.ok
            and 'cannot be cached (no new_cache): the text is read again for every token' in report)
    assert GPT(GPTConfig(**DIMS, attn=RunningMean)).new_caches() is None


# ---- who derives from what

@pytest.mark.parametrize('method, needs',
                         [('prepare', 'Layer'), ('new_cache', 'Layer'), ('mix_flops', 'Layer')])
def test_a_plain_module_that_does_more_is_told_what_to_derive_from(method, needs):
    Plain = type('Plain', (Newcache,), {method: lambda self, *args: None})
    del Newcache.newcache
    try:
        with pytest.raises(TypeError, match=rf'Plain has {method}, but is no {needs}: write class '
                                            rf'Plain\({needs}\)'):
            GPT(GPTConfig(**DIMS, attn=Plain))
    finally: Newcache.newcache = lambda self: Cache()

def test_a_scheme_that_is_no_position_or_does_nothing_is_refused():
    class Duck:
        def __init__(self, D, n_heads): pass
        def rotate(self, seq, q, k): return q, k
    class Turn(Position):
        def __init__(self, D, n_heads): pass
        def turn(self, seq, q, k): return q, k
    for pos, words in ((Duck, r'Duck has rotate, but is no Position: write class Duck\(Position\)'),
                       (Turn, 'Turn does nothing: give it rotate'),
                       (nn.Embedding, 'Embedding is no Position')):
        with pytest.raises(TypeError, match=words): Attention(16, 2, pos=pos)

def test_a_scheme_that_comes_later_is_asked_too():
    for make in (Attention, OpenAttention, MLA):
        attn = make(16, 2, pos=LinearBias)
        assert 'pos.m' in attn.state_dict()
        attn.pos = None
        assert type(attn.pos) is Position and 'pos.m' not in attn.state_dict()
        attn.pos = LinearBias(8, 2)
        assert 'pos.m' in attn.state_dict()
        with pytest.raises(TypeError, match='did you mean rotate'): attn.pos = Rotat(8, 2)

def test_no_scheme_is_one_that_does_nothing():
    x, seq = torch.randn(2, 6, 16), Seq(torch.zeros(2, 6, dtype=torch.long))
    attn = Attention(16, 2)
    y = attn(x, seq)
    attn.pos = None
    assert not torch.allclose(attn(x, seq), y)
    for twin in (copy.deepcopy(attn), pickle.loads(pickle.dumps(attn))):
        assert torch.equal(twin(x, seq), attn(x, seq))

def test_a_cache_that_is_none_is_refused():
    class Shelf:
        seen = 0
    class Keeps(Attention):
        def new_cache(self): return Shelf()
    with pytest.raises(TypeError, match=r'write class Shelf\(LayerCache\)'):
        GPT(GPTConfig(**DIMS, attn=Keeps)).new_caches()
    with pytest.raises(TypeError, match=r'write class Shelf\(LayerCache\)'): check_attn(Keeps)
    with pytest.raises(TypeError, match=r'write class Shelf\(LayerCache\)'):
        Seq(torch.zeros(1, 2, dtype=torch.long), caches=[Shelf()])

def test_caches_of_all_kinds_count_their_bytes():
    for kw in (dict(), dict(block=MoD), dict(attn=DeltaAttention), dict(attn=[MLA, Attention])):
        model = GPT(GPTConfig(**DIMS, **kw)).eval()
        caches = model.new_caches()
        assert all(isinstance(c, LayerCache) for c in caches) and cache_bytes(caches) == 0
        with torch.no_grad():
            for block in model.blocks:
                # every token is worked on
                if isinstance(block, MoD): block.guess.bias.fill_(9.)
            model(torch.zeros(2, 5, dtype=torch.long), caches=caches)
        assert cache_bytes(caches) > 0


# ---- once

class Slope(Position):
    def __init__(self, rate, **more):
        self.rate = rate
        self.__dict__.update(more)

    @once
    def bias(self, seq, kpos): return self.rate*(kpos[:,None,:] - seq.pos[:,:,None])[:,None]

def test_what_is_alike_is_shared_and_nothing_else():
    seq = Seq(torch.zeros(2, 6, dtype=torch.long))
    made = Slope(.5).bias(seq, seq.pos)
    assert Slope(.5).bias(seq, seq.pos) is made and Slope(.5).bias(seq.at(0), seq.pos) is made
    assert (Slope(.25).bias(seq, seq.pos) is not made
            and Slope(.5, more=1).bias(seq, seq.pos) is not made)
    assert type('Other', (Slope,), {})(.5).bias(seq, seq.pos) is not made
    assert Slope(.5).bias(seq, seq.pos[:,:3]).shape == (2, 1, 6, 3)
    assert Slope(.5).bias(Seq(seq.ids), seq.pos) is not made
    with pytest.raises(TypeError, match='Slope has a setting that cannot be compared'):
        Slope([1]).bias(seq, seq.pos)

def test_modules_share_with_no_other():
    class Learnt(nn.Module, Position):
        def __init__(self):
            super().__init__()
            self.m = nn.Parameter(torch.ones(1))
        @once
        def bias(self, seq, kpos): return self.m*kpos[:,None,None,:]
    seq, a, b = Seq(torch.zeros(1, 4, dtype=torch.long)), Learnt(), Learnt()
    assert (a.bias(seq, seq.pos) is a.bias(seq, seq.pos)
            and a.bias(seq, seq.pos) is not b.bias(seq, seq.pos))

def test_rotations_of_other_strength_are_not_shared():
    seq, q = Seq(torch.zeros(1, 8, dtype=torch.long)), torch.randn(1, 1, 8, 16)
    mild, strong = (YaRN(16, factor=4., context_length=64) for _ in range(2))
    strong.slow = 2
    alone = strong.rotate(Seq(seq.ids), q, q)[0]
    mild.rotate(seq, q, q)
    assert (torch.equal(strong.rotate(seq, q, q)[0], alone)
            and not torch.equal(mild.rotate(seq, q, q)[0], alone))

def test_an_error_inside_is_not_taken_for_a_setting():
    class Wrong(Position):
        @once
        def bias(self, seq, kpos): return kpos + 'a'
    seq = Seq(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(TypeError) as caught: Wrong().bias(seq, seq.pos)
    assert 'setting' not in str(caught.value)


# ---- masks

def test_a_mask_is_a_table_only_where_no_rule_will_do():
    seq = Seq(torch.zeros(2, 6, dtype=torch.long))
    assert (seq.mask(seq.pos) == Mask(causal=True)
            and seq.mask(seq.pos, window=6) == Mask(causal=True))
    past = torch.ones(6, 6, dtype=torch.bool).tril()
    for m in (seq.mask(seq.pos, table=True), Seq(seq.ids, docs=seq.ids).mask(seq.pos, seq.ids)):
        assert not m.causal and torch.equal(m.table, past.expand(2, 1, 6, 6))
    assert torch.equal(seq.mask(seq.pos, window=2).table[0,0], past & ~past.tril(-2))
    attn = Attention(16, 2, pos=ALiBi)
    table = attn.mask(seq, seq.pos, None).table
    assert table.shape == (2, 2, 6, 6) and (table[0,0] == -math.inf).equal(~past)
    assert Attention(16, 2, softcap=5.).mask(seq, seq.pos, None).table is not None

def test_extend_context_asks_its_scheme():
    class Odd(YaRN):
        def rotat(self, seq, q, k): return q, k
    model = GPT(GPTConfig(**DIMS))
    with pytest.raises(TypeError, match='did you mean rotate'): extend_context(model, 2, Odd)


# ---- nothing of ours breaks a graph

WHOLE = dict(plain={}, learnt=dict(pos_embed=LearnedPositions),
             windows=dict(attn=[partial(Attention, window=3), Attention]),
             alibi=dict(attn=partial(Attention, pos=ALiBi)),
             bias=dict(attn=partial(Attention, pos=LinearBias)), latent=dict(attn=MLA),
             delta=dict(attn=DeltaAttention),
             scaled=dict(attn=partial(Attention, pos=partial(YaRN, factor=2., context_length=12))))

@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.parametrize('documents', [False, True])
def test_a_whole_model_is_one_graph(name, documents):
    torch._dynamo.reset()
    model = GPT(GPTConfig(**DIMS, **WHOLE[name])).eval()
    ids = torch.randint(0, 11, (2, 8))
    more = (dict(docs=torch.arange(8).expand(2, 8)//4, pos=torch.arange(8).expand(2, 8) % 4)
            if documents else {})
    nll, _ = torch.compile(model, fullgraph=True, backend='eager')(ids, ids, **more)
    assert torch.equal(nll, model(ids, ids, **more)[0])


def test_schemes_of_other_settings_share_nothing():
    "Two layers of YaRN with other strengths shared their angles: the key had left out the strength"
    from gptlab.hub import HubYaRN
    ids = torch.zeros(1, 8, dtype=torch.long)
    q = torch.randn(1, 1, 8, 8)
    seq, alone = Seq(ids), Seq(ids)
    HubYaRN(8, strength=1.).rotate(seq, q, q)
    shared, _ = HubYaRN(8, strength=2.).rotate(seq, q, q)
    fresh, _ = HubYaRN(8, strength=2.).rotate(alone, q, q)
    assert torch.equal(shared, fresh)


# ---- tokenizers

class Plain:
    "No Tokenizer: what somebody writes who has read nothing but the names"
    vocab_size = 256
    def encode(self, text): return [(b+3) % 256 for b in text.encode()]
    def decode_bytes(self, ids): return bytes((i-3) % 256 for i in ids)

class OnlyDecodes:
    vocab_size = 256
    def encode(self, text): return list(text.encode())
    def decode(self, ids): return bytes(ids).decode(errors='replace')

class Knows(Plain):
    "Has all of the contract that it needs, under the right names"
    bos, special, alphabet, lossy = 0, {'<|zero|>': 0}, 'ab', True
    def normal(self, text): return text.lower()
    def byte_counts(self, text): return [1]*len(text)
    def encode_batch(self, texts): return [[7] for _ in texts]
    def save(self, path): return path
    def to_dict(self): return dict(mine=1)

class Delegates:
    "What it has, another object has"
    def __init__(self, tok): self.inner = tok
    def __getattr__(self, name): return getattr(self.inner, name)

OWN = [ByteTokenizer(), CharTokenizer('ab'), BPE([]), ByT5Tokenizer(), AsciiTokenizer(),
       StrippedAsciiTokenizer(), RankTokenizer(BPE([]).ranks)]

@pytest.mark.parametrize('tok', OWN, ids=repr)
def test_a_tokenizer_of_ours_is_its_own_contract(tok): assert as_tokenizer(tok) is tok

def test_a_plain_object_has_the_plain_defaults():
    own = Plain()
    tok = as_tokenizer(own)
    assert isinstance(tok, Tokenizer) and tok.own is own and vars(own) == {}
    assert (tok.bos, tok.special, tok.lossy, tok.alphabet) == (None, {}, False, None)
    assert not tok.savable and tok.to_dict() is None
    for t in fuzz_texts(20):
        assert tok.encode(t) == own.encode(t) and tok.decode(tok.encode(t)) == t == tok.normal(t)
        assert sum(tok.byte_counts(t)) == len(t.encode())
    assert tok.encode_batch(['a', 'bc']) == [own.encode('a'), own.encode('bc')]
    assert tok.token_bytes.equal(torch.ones(256).long())
    assert ''.join(tok.decode_stream(tok.encode('naïve 👍'))) == 'naïve 👍'
    with pytest.raises(ValueError, match='pass bos=False'): tok.encode_batch(['a'], bos=True)

def test_what_an_object_has_is_read_from_it():
    own = Knows()
    tok = as_tokenizer(own)
    assert (tok.bos, tok.special, tok.alphabet, tok.lossy) == (0, {'<|zero|>': 0}, 'ab', True)
    assert tok.normal('AB') == 'ab' and tok.byte_counts('ab') == [1, 1]
    assert tok.encode_batch(['a', 'b']) == [[7], [7]] and tok.to_dict() == dict(mine=1)
    assert tok.savable and tok.save('here') == 'here'
    own.vocab_size = 300                                       # read anew, not copied
    assert tok.vocab_size == 300

def test_what_an_object_hands_on_counts_as_its_own():
    inner = ByteTokenizer()
    tok = as_tokenizer(Delegates(inner))
    assert (tok.bos, tok.special, tok.vocab_size) == (256, inner.special, 257)
    assert tok.encode('Hi', bos=True) == [256, 72, 105] and tok.savable

def test_without_the_bytes_behind_an_id_nothing_is_scored():
    tok = as_tokenizer(OnlyDecodes())
    assert tok.token_bytes is None and tok.decode_bytes([72, 105]) == b'Hi'
    with pytest.raises(ValueError, match='OnlyDecodes: the bytes of its ids need decode_bytes'):
        check_tokenizer(OnlyDecodes())

@pytest.mark.parametrize('name, near', [('encode_bacth', 'encode_batch'), ('normals', 'normal'),
                                        ('byte_count', 'byte_counts'), ('too_dict', 'to_dict'),
                                        ('decode_streem', 'decode_stream')])
@pytest.mark.parametrize('base', [Plain, ByteTokenizer])
def test_a_slip_in_a_tokenizer_is_found(name, near, base):
    made = type('Made', (base,), {name: lambda self, x: x})()
    said = f'Made has {name}, which is never called: did you mean {near}\\?'
    with pytest.raises(TypeError, match=said): as_tokenizer(made)
    with pytest.raises(TypeError, match=said): show_tokens(made, 'text')

@pytest.mark.parametrize('name', ['train', 'tokenize', 'pad', 'load', 'batch_decode'])
@pytest.mark.parametrize('base', [Plain, ByteTokenizer])
def test_other_methods_are_no_slips(name, base):
    made = type('Made', (base,), {name: lambda self, x: x})()
    assert as_tokenizer(made).encode('a') == made.encode('a')

def test_what_lacks_a_part_is_told_which():
    class Size(Plain): vocabsize = 5
    del Plain.vocab_size
    try:
        with pytest.raises(TypeError, match='Size has vocabsize.* did you mean vocab_size'):
            as_tokenizer(Size())
    finally: Plain.vocab_size = 256
    class Encod:
        vocab_size = 2
        def encod(self, text): return []
    with pytest.raises(TypeError, match='Encod has encod, .* did you mean encode'):
        as_tokenizer(Encod())
    for odd in (None, 5, 'gpt2', [1]):
        with pytest.raises(TypeError, match='so it is no tokenizer'): as_tokenizer(odd)

def test_a_plain_object_goes_through_every_door():
    plain = Plain()
    assert repr(show_tokens(plain, 'Hi')) == 'H|i'
    assert show_vocab(plain).groups == {}
    assert check_tokenizer(plain)['texts'] == 200
    assert encode_special(plain, 'a') == plain.encode('a')
    assert bytes_per_token(plain, ['ab', 'é']) == 1.
    assert renyi_efficiency(plain, 'ab') == renyi_efficiency(ByT5Tokenizer(), 'ab')[:1] + (1/8,)
    assert compare_tokenizers({'mine': plain}, 'abc')[0]['lost'] == 0
    assert list(show_all({'mine': plain}, 'abc')) == ['mine, 3 ids']
