"""What makes the front page's model learn more?  Candidates, one at a time, beside one base.

The base is plain attention at a batch of 8, with the best rates that `race.py --tune` found for it:
AdamW at .2 for the embedding and .01 for the head, Muon at .02. A candidate changes one thing. All
see the same number of tokens, on one thread, and are scored in rows on the whole validation text;
seeds are paired. What each was expected to gain stands beside it and was committed before the first
run. Seconds are of the processor, so that a busy machine changes little; where a candidate makes
the step slower or faster, `seconds` says so, and only a race (race.py) decides at equal seconds.

    python benchmarks/speedrun.py                        two seeds of every candidate, 300k tokens
    python benchmarks/speedrun.py --only rows_grow tie   these alone; goes on where it was ended
    python benchmarks/speedrun.py --table                what is known, as a table

Results are in nbs/experiments/results/speedrun.json, and on the page speedrun.ipynb beside it.
"""
import argparse, json, os, statistics, time
from functools import partial
from common import machine, RESULTS
import torch
from fastcore.meta import delegates
from torch import nn
from torch.nn import functional as F
from gptlab.all import *

ROW, DEPTH, WIDTH, HEADS = 128, 4, 128, 4               # the front page's
FILE = RESULTS.parents[1]/'nbs'/'experiments'/'results'/'speedrun.json'
SEEDS = (2001, 2002)                                    # of no race, and of no trial


# ---- parts

class Smear(nn.Module):
    "A second table, for the token before, in the place of `pos_embed` (nanochat shares one table)"
    def __init__(self, width, context_length, vocab=2048):
        super().__init__()
        self.table = nn.Embedding(vocab, width)

    def forward(self, seq): return F.pad(self.table(seq.ids), (0, 0, 1, -1))


class Bigrams(nn.Module):
    "An embedding of a token with the one before it, by a hash of both (as in modded-nanogpt)"
    def __init__(self, width, context_length, rows=16384):
        super().__init__()
        self.table = nn.Embedding(rows, width)

    def forward(self, seq): return hashed_pairs(self.table, seq)


def hashed_pairs(table, seq):
    "Rows of a table for each token with the one before it (B,T,width)"
    return table((F.pad(seq.ids, (1, -1))*36313 + seq.ids*27191) % len(table.weight))


def by_head(rows, n): return rows.unflatten(-1, (n, -1)).transpose(1, 2)   # (B,T,n·D) -> (B,n,T,D)


@delegates()
class Smeared(OpenAttention):
    """Keys hold a learnt fraction of the key before (Olsson et al. 2022, smeared keys)

    With `values`, values do too."""
    def __init__(self, C, n_heads, n_kv_heads=None, values=True, **kwargs):
        super().__init__(C, n_heads, n_kv_heads, **kwargs)
        self.mix, self.values = nn.Parameter(torch.zeros(2, self.K, 1, 1)), values

    def _recall(self, seq, k, v):
        k, v, *rest = super()._recall(seq, k, v)
        back = lambda t: F.pad(t, (0, 0, 1, -1))
        k = k + self.mix[0]*back(k)
        return k, v + self.mix[1]*back(v) if self.values else v, *rest


class PairTable(Add):
    """An embedding of a token with the one before it, by a hash, in the first layer

    Beside the average, or in the values."""
    def __init__(self, C, n_heads, n_kv_heads, d_value, layer=0, rows=16384, strength=1.,
                 values=False):
        super().__init__()
        self.n, self.active, self.values, self.strength = n_heads, layer == 0, values, strength
        if self.active: self.table = nn.Embedding(rows, n_heads*d_value)

    def _rows(self, seq): # (B,H,T,Dv)
        return self.strength*by_head(hashed_pairs(self.table, seq), self.n)

    def before(self, q, k, v, x, seq):
        return q, k, v + self._rows(seq) if self.active and self.values else v

    def beside(self, y, v, seq, kpos, kdocs):
        return y + self._rows(seq) if self.active and not self.values else y


class TwoBack(Add):
    "The value two places back, times a scale, or times a row of a table, as `PairValue` has it"
    def __init__(self, C, n_heads, n_kv_heads, d_value, vocab_size, strength=None):
        super().__init__()
        self.n, self.strength = n_heads, strength
        if strength: self.table = nn.Embedding(vocab_size, n_heads*d_value)
        else: self.scale = nn.Parameter(torch.full((n_heads, 1, 1), .25))

    def beside(self, y, v, seq, kpos, kdocs):
        back = F.pad(v, (0, 0, 2, -2))
        if not self.strength: return y + self.scale*back
        return y + self.strength*by_head(self.table(seq.ids), self.n)*back


class TokenGate(Add):
    "Outputs of the heads times 1 + strength·table[id]"
    def __init__(self, C, n_heads, n_kv_heads, d_value, vocab_size, strength=.25):
        super().__init__()
        self.n, self.strength = n_heads, strength
        self.table = nn.Embedding(vocab_size, n_heads*d_value)

    def after(self, y, x, seq):
        return y*(1 + self.strength*by_head(self.table(seq.ids), self.n))


class Matches(Add):
    """The values that followed earlier occurrences of this token, in one mean

    Each weighs as much as the sum of `weights` for the lengths that agree; with `latest`, the
    latest of the heaviest alone counts; with `strength`, a table as in `PairValue`."""
    def __init__(self, C, n_heads, n_kv_heads, d_value, vocab_size, weights=(1., 99.),
                 latest=False, strength=None):
        super().__init__()
        self.n, self.weights, self.latest, self.strength = n_heads, weights, latest, strength
        self.scale = nn.Parameter(torch.full((n_heads, 1, 1), .5))
        if strength: self.table = nn.Embedding(vocab_size, n_heads*d_value)

    def found(self, ids): # (B,T) -> (B,T,T)
        T = ids.shape[1]
        same = ids[:,:,None] == F.pad(ids, (1, -1), value=-1)[:,None]
        match = same & torch.ones(T, T, dtype=torch.bool).tril()
        w = match*self.weights[0]
        for n, more in enumerate(self.weights[1:], 1):
            match = match & F.pad(same, (n, -n, n, -n))
            w = w + match*more
        if self.latest:
            best = (w == w.amax(-1, keepdim=True)) & (w > 0)
            last = (best*torch.arange(1, T+1)).amax(-1, keepdim=True)
            w = (torch.arange(1, T+1) == last).float()
        return w/w.sum(-1, keepdim=True).clamp(min=1e-9)

    def beside(self, y, v, seq, kpos, kdocs):
        key = Matches, self.weights, self.latest
        mean = seq.once(key, lambda: self.found(seq.ids).to(v.dtype))[:,None] @ v
        scale = self.scale
        if self.strength: scale = scale + self.strength*by_head(self.table(seq.ids), self.n)
        return y + scale*mean


class Embedding(nn.Embedding):
    "Normed, as nanochat's is"
    def forward(self, ids): return F.rms_norm(super().forward(ids), (self.embedding_dim,))


class Backout(GPT):
    "What half of the blocks wrote is taken off again before the head (as in nanochat)"
    def __init__(self, cfg):
        super().__init__(cfg)
        self.share = nn.Parameter(torch.tensor([.2]))
        middle = self.blocks[cfg.n_layers//2 - 1]
        middle.register_forward_hook(lambda m, args, out: setattr(self, 'half', [out]))
        self.norm.register_forward_pre_hook(lambda m, args: args[0] - self.share*self.half[0])


class TwoAhead(GPT):
    "Learns the token after the next one as well, by a head of its own (Gloeckle et al. 2024)"
    def __init__(self, cfg):
        super().__init__(cfg)
        self.second = nn.Linear(cfg.d_model, len(self.head.weight), bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, ids, targets=None, **kw):
        if targets is None or not self.training: return super().forward(ids, targets, **kw)
        x, aux = self._hidden(ids)
        after = F.pad(targets[:,1:], (0, 1), value=-100)
        return token_nll(self._logits(x), targets) + .3*token_nll(self.second(x), after), aux


class Looped(GPT):
    "The two blocks in the middle are passed twice (as in the Universal Transformer)"
    def __init__(self, cfg):
        super().__init__(cfg)
        first, a, b, last = self.blocks
        self.blocks = nn.ModuleList([first, a, b, a, b, last])


class Counted(GPT):
    "Begins from counts: logits of what follows each token in the training text, and learns on"
    def __init__(self, cfg):
        super().__init__(cfg)
        self.table = None

    def forward(self, ids, targets=None, **kw):
        if self.table is None or targets is None: return super().forward(ids, targets, **kw)
        x, aux = self._hidden(ids)
        return token_nll(self._logits(x) + self.table(ids), targets), aux


def counts_of(text, tok):
    "log of the share of each pair of tokens, smoothed towards the share of the second (V,V)"
    ids = torch.from_numpy(tokenize(text.train, tok).ids.astype('int64'))
    V = tok.vocab_size
    pairs = torch.bincount(ids[:-1]*V + ids[1:], minlength=V*V).view(V, V).float()
    single = torch.bincount(ids, minlength=V).float() + .1
    share = single/single.sum()
    n, kinds = pairs.sum(1, keepdim=True), (pairs > 0).sum(1, keepdim=True)
    kept = (pairs - .75).clamp(min=0)                   # absolute discounting (Ney et al. 1994)
    return ((kept + (.75*kinds + 1e-3)*share)/(n + 1e-3)).log(), share.log()


# ---- a run

def built(text, seed, tokenizers, *, vocab=2048, B=8, T=ROW, layers=DEPTH, width=WIDTH, d_ff=None,
          lr=.02, elr=.2, hlr=.01, alr=.01, kind=GPT, adds=(), block=Block, places=None, tie=False,
          softcap=None, mlp=MLP, rule=muon, wd=0., momentum=None, schedule=None, normed=False,
          sharp=None, prior=None, vlr=None, dropout=0., lengths=None, sizes=None, betas=(.8, .995),
          average=False, up=None, d_head=None, embed_std=None, attention=None,
          table_std=None, head_betas=(.8, .96), ns=None, pair_std=None):
    "A Trainer of the base, with what a candidate changes"
    if vocab not in tokenizers: tokenizers[vocab] = BPE.train(text, vocab, inside='text')
    tok = tokenizers[vocab]
    train, valid = batches(text, tok, B=B, T=T, seed=seed)
    set_seed(seed)
    attn = attention or Attention
    if adds: attn = partial(attention or OpenAttention, adds=[*adds])
    if sharp: attn = partial(OpenAttention, adds=[*adds, partial(Sharp, by=sharp)])
    if d_head: attn = partial(attn, d_head=d_head)
    model = kind(GPTConfig(vocab_size=vocab, context_length=ROW, n_layers=layers, n_heads=HEADS,
                           d_model=width, d_ff=d_ff, block=block, attn=attn, mlp=mlp, tie=tie,
                           softcap=softcap, pos_embed=places, dropout=dropout))
    if normed: model.embed.__class__ = Embedding
    with torch.no_grad():
        for m in model.modules():
            if table_std and isinstance(m, ValueEmbedding): m.table.weight *= table_std
        if embed_std: model.embed.weight *= embed_std
        if up:
            for b in model.blocks: b.mlp.up.weight *= up
        for m in model.modules():
            if isinstance(m, Smear): m.table.weight *= 0
            if isinstance(m, Bigrams): m.table.weight *= 0
            if isinstance(m, (PairTable, TokenGate)) and hasattr(m, 'table'): m.table.weight *= 0
            if isinstance(m, PairValue) and pair_std is not None: m.table.weight *= pair_std
    if prior:
        pairs, single = counts_of(text, tok)
        model.table = nn.Embedding.from_pretrained(
            pairs if prior.startswith('pairs') else single.expand_as(pairs).contiguous(),
            freeze=prior.endswith('frozen'))
    tables = adamw(lr=vlr or elr, betas=betas, at=lambda n, p, m: isinstance(m, nn.Embedding)
                   and n not in ('embed.weight', 'table.weight'))
    more = dict(wd=wd, precision='float32') | (dict(schedule=dict(momentum=momentum)) if momentum
                                               else {}) | (dict(ns_steps=ns) if ns else {})
    groups = [rule(lr=lr, at=hidden, **more)]
    has = lambda g: any(g._takes(n, p, model.get_submodule(n.rpartition('.')[0]))
                        for n, p in model.named_parameters())
    groups.append(adamw(lr=elr, betas=betas, at='embed.weight'))
    if has(tables): groups.append(tables)
    if not tie: groups.append(adamw(lr=hlr, betas=head_betas, at='head.weight'))
    if prior and not prior.endswith('frozen'): groups.append(adamw(lr=.01, at='table.weight'))
    callbacks = [TailAverage()] if average else []
    if lengths: callbacks.append(GrowLength(lengths, B*T))
    if sizes: callbacks.append(GrowBatch(sizes))
    return Trainer(model, Opt(model, *groups, adamw(lr=alr, betas=(.9, .95))), train, valid,
                   schedule=schedule or wsd(), eval_every=0, callbacks=callbacks)


class Sharp(Add):
    "Queries and keys times a constant"
    def __init__(self, C, n_heads, n_kv_heads, d_value, by=1.2):
        super().__init__()
        self.by = by

    def before(self, q, k, v, x, seq): return q*self.by, k*self.by, v


# name: (bits per byte it is expected to change the score by, what it changes)
linear_down = piecewise_linear((0, 0), (.02, 1), (1, 0))
warm = piecewise_linear((0, .85/.95), (.2, 1), (1, 1))
half = piecewise_linear((0, 0), (.02, 1), (.35, 1), (1, .05))
TWO = dict(adds=[ValueEmbedding, PreviousValue])
MATCHES = dict(adds=[ValueEmbedding, PairValue, InductionValue], head_betas=(.9, .95))
TUNED = dict(B=16, elr=.4, head_betas=(.9, .95), adds=[ValueEmbedding, PreviousValue])
def pair_value(strength): return partial(PairValue, strength=strength)
QUARTER = pair_value(.25)
TWO_MEANS = partial(Matches, weights=(1.,)), partial(Matches, weights=(0., 1.))
def added(*adds, **more): return TUNED | more | dict(adds=[*adds])
CANDIDATES = {
    'base': (0., {}),
    'value_embedding': (-.010, dict(adds=[ValueEmbedding])),
    'value_embedding_alternate': (-.008, dict(adds=[partial(ValueEmbedding, every=2)])),
    'x0': (-.008, dict(block=ScaledBlock)),
    'smeared_keys': (-.010, dict(attention=partial(Smeared, values=False))),
    'smeared': (-.020, dict(attention=Smeared)),
    'value_embedding+smeared': (-.040, dict(attention=Smeared, adds=[ValueEmbedding])),
    'look_back': (-.015, dict(adds=[PreviousValue])),
    'value_embedding+look_back': (-.040, TWO),
    # the defaults of earlier commits: three groups of rates
    'before': (.035, dict(lr=.014, elr=.01, hlr=.01, betas=(.9, .95), head_betas=(.9, .95))),
    'rates': (.000, dict(head_betas=(.9, .95))),
    'parts': (-.043, TWO | dict(head_betas=(.9, .95))),
    'pairs': (-.073, dict(adds=[ValueEmbedding, PairValue], head_betas=(.9, .95))),
    'matches': (-.113, MATCHES),
    # on top of all four steps, at full size (gains are to `base` all the same)
    'matches+bigrams': (-.120, MATCHES | dict(places=Bigrams)),
    'matches+smear': (-.114, MATCHES | dict(places=Smear)),
    'matches+linear_down': (-.118, MATCHES | dict(schedule=linear_down)),
    'matches+longer': (-.117, dict(adds=[ValueEmbedding, PairValue,
                                         partial(InductionValue, length=3)],
                                   head_betas=(.9, .95))),
    # fewer products in Muon, of which five steps are over a quarter of all arithmetic
    'parts+ns_4': (-.042, TWO | dict(head_betas=(.9, .95), ns=4)),
    'parts+ns_3': (-.040, TWO | dict(head_betas=(.9, .95), ns=3)),
    'parts+grow_batch': (-.038, TWO | dict(head_betas=(.9, .95), sizes={0: 8*ROW, 150: 16*ROW})),
    # on top of the best two, which `two` is short for: gains are to the base all the same
    'two+small_tables': (-.045, TWO | dict(table_std=.1)),
    'two+table_rate': (-.046, TWO | dict(vlr=.05)),
    'two+rate_1': (-.046, TWO | dict(elr=.1)),
    'two+linear_down': (-.047, TWO | dict(schedule=linear_down)),
    'two+batch_4': (-.055, TWO | dict(B=4)),
    'two+vocab_4096': (-.050, TWO | dict(vocab=4096)),
    'two+bigrams': (-.055, TWO | dict(places=Bigrams)),
    'two+x0': (-.043, TWO | dict(block=ScaledBlock)),
    'two+narrow_up': (-.045, TWO | dict(up=.4)),
    'value_embedding+smear': (-.048, dict(places=Smear, adds=[ValueEmbedding])),
    'value_embedding+bigrams': (-.050, dict(places=Bigrams, adds=[ValueEmbedding])),
    # on top of what twelve trials at equal seconds had found: a batch of 16, 0.4 for the tables;
    # gains are to `tuned`, at 1.2 million tokens
    'tuned': (.000, TUNED),
    'tuned+bigrams': (-.012, TUNED | dict(places=Bigrams)),
    'tuned+bigrams_65536': (-.016, TUNED | dict(places=partial(Bigrams, rows=65536))),
    'tuned+bigrams_beside': (-.010, added(ValueEmbedding, PreviousValue, PairTable)),
    'tuned+bigrams_in_values': (-.010, added(ValueEmbedding, PreviousValue,
                                             partial(PairTable, values=True))),
    'tuned+vocab_4096': (-.005, TUNED | dict(vocab=4096)),
    'tuned+two_back': (-.004, added(ValueEmbedding, PreviousValue, TwoBack)),
    'tuned+gate': (-.003, added(ValueEmbedding, PreviousValue, partial(Gate, per_head=True))),
    'tuned+linear_down': (-.004, TUNED | dict(schedule=linear_down)),
    # PairValue in the place of PreviousValue; with tables that begin at 0, unless it says `random`
    'pairs_1': (-.005, added(ValueEmbedding, partial(PairValue, strength=1.), pair_std=0.)),
    'pairs_25': (-.010, added(ValueEmbedding, QUARTER, pair_std=0.)),
    'pairs_25_random': (.000, added(ValueEmbedding, QUARTER)),
    'pairs_25+bigrams_beside': (-.030, added(ValueEmbedding, QUARTER, PairTable, pair_std=0.)),
    'pairs_25+token_gate': (-.025, added(ValueEmbedding, QUARTER, TokenGate, pair_std=0.)),
    # and what followed earlier occurrences
    'pairs_25+latest': (-.030, added(ValueEmbedding, QUARTER, partial(Matches, weights=(1.,),
                                                                     latest=True), pair_std=0.)),
    'pairs_25+latest_of_longest': (-.042, added(ValueEmbedding, QUARTER,
                                                partial(Matches, latest=True), pair_std=0.)),
    'pairs_25+mean': (-.030, added(ValueEmbedding, QUARTER, partial(Matches, weights=(1.,)),
                                   pair_std=0.)),
    'pairs_25+mean_of_longest': (-.050, added(ValueEmbedding, QUARTER,
                                              partial(Matches, weights=(1., 1e4)), pair_std=0.)),
    'pairs_25+weighted_mean': (-.050, added(ValueEmbedding, QUARTER, Matches, pair_std=0.)),
    'pairs_25+two_means': (-.050, added(ValueEmbedding, QUARTER, *TWO_MEANS, pair_std=0.)),
    'weighted_mean': (-.035, added(ValueEmbedding, PreviousValue, Matches)),
    'pairs_10+weighted_mean': (-.050, added(ValueEmbedding, pair_value(.1), Matches,
                                            pair_std=0.)),
    'pairs_10_random+weighted_mean': (-.050, added(ValueEmbedding, pair_value(.1), Matches)),
    # from here on the tables begin at random, as all tables of embeddings do
    'pairs_05+weighted_mean': (-.070, added(ValueEmbedding, pair_value(.05), Matches)),
    'pairs_10+weighted_mean+rate_2': (-.070, added(ValueEmbedding, pair_value(.1), Matches,
                                                   elr=.2)),
    'pairs_05+two_means': (-.090, added(ValueEmbedding, pair_value(.05), InductionValue)),
    'pairs_02+two_means': (-.090, added(ValueEmbedding, pair_value(.025), InductionValue)),
    'pairs_01+two_means': (-.090, added(ValueEmbedding, pair_value(.0125), InductionValue)),
    'pairs_02+two_means+wide': (-.100, added(ValueEmbedding, pair_value(.025), InductionValue,
                                             width=160, d_head=40)),
    'pairs_02+two_means+batch_8': (-.090, added(ValueEmbedding, pair_value(.025), InductionValue,
                                                B=8, elr=.2)),
    'pairs_20+two_means+table_rate': (-.090, added(ValueEmbedding, pair_value(.2), InductionValue,
                                                   vlr=.1)),
    'pairs_02+two_means+two_back': (-.095, added(ValueEmbedding, pair_value(.025), InductionValue,
                                                 partial(TwoBack, strength=.025))),
    'pairs_02+weighted_mean': (-.085, added(ValueEmbedding, pair_value(.025), Matches)),
    'two_ahead': (.005, dict(kind=TwoAhead)),
    'looped': (-.010, dict(kind=Looped)),
    'backout': (-.005, dict(kind=Backout)),
    'smear': (-.010, dict(places=Smear)),
    'bigrams': (-.020, dict(places=Bigrams)),
    'unigram_prior': (-.003, dict(kind=Counted, prior='single')),
    'pair_prior': (-.030, dict(kind=Counted, prior='pairs')),
    'pair_prior_frozen': (-.020, dict(kind=Counted, prior='pairs frozen')),
    'softcap': (.000, dict(softcap=15.)),
    'norm_embedding': (-.002, dict(normed=True)),
    'sharp': (-.003, dict(sharp=1.2)),
    'momentum_warmup': (-.002, dict(momentum=warm)),
    'normuon': (-.003, dict(rule=normuon)),
    'decay': (.002, dict(wd=.1)),
    'cautious_decay': (-.003, dict(rule=normuon, wd=.1)),
    'linear_down': (-.005, dict(schedule=linear_down)),
    'cool_65': (-.004, dict(schedule=half)),
    'cosine': (-.002, dict(schedule=cosine(end=0.))),
    'tail_average': (.010, dict(average=True)),
    'dropout': (.020, dict(dropout=.05)),
    'tie': (.020, dict(tie=True, elr=.01)),
    'swiglu': (.005, dict(mlp=partial(GLU, act=silu), d_ff=341)),
    'narrow_up': (-.002, dict(up=.4)),
    'small_embedding': (-.003, dict(embed_std=.3)),
    'rows_grow': (.005, dict(lengths={0: 32, 60: 64, 120: 128})),
    'batch_4': (-.015, dict(B=4)),
    'batch_16': (.030, dict(B=16)),
    'vocab_1024': (.010, dict(vocab=1024)),
    'vocab_4096': (-.005, dict(vocab=4096)),
    'deep': (.005, dict(layers=6, width=104, d_head=26)),
    'wide': (-.005, dict(layers=3, width=160, d_head=40)),
    'muon_03': (.000, dict(lr=.03)),
    'rest_003': (.000, dict(alr=.003)),
}


def one(name, text, seed, tokens, tokenizers):
    "A run of a candidate, scored"
    torch.set_num_threads(1)
    run = built(text, seed, tokenizers, **CANDIDATES[name][1])
    start = time.process_time()
    run.fit(tokens=tokens)
    took = time.process_time() - start
    last = run.log[-1]
    return dict(candidate=name, expected=CANDIDATES[name][0], seed=seed, budget=tokens,
                tokens=run.tokens,
                bpb=last.get('bpb_tail', last['bpb']), seconds=round(took, 1),
                parameters=sum(p.numel() for p in run.model.parameters()))


def table(rows):
    "Each candidate's paired difference to the base, and what was expected"
    def of(name): return {(r['seed'], r['budget']): r for r in rows if r['candidate'] == name}
    base = of('base')
    print(f'{"candidate":28} {"expected":>8} {"gain":>8} {"each seed":>24} {"CPU time":>9}')
    for name, (expected, _) in CANDIDATES.items():
        own = of(name)
        both = [k for k in own if k in base]
        if not both: continue
        gains = [own[k]['bpb'] - base[k]['bpb'] for k in both]
        pace = statistics.mean(own[k]['seconds']/base[k]['seconds'] for k in both)
        each = ' '.join(f'{g:+.4f}' for g in gains)
        print(f'{name:28} {expected:+8.3f} {statistics.mean(gains):+8.4f} {each:>24} {pace:9.2f}')


def saved(): return json.loads(FILE.read_text())['runs'] if FILE.exists() else []


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=list(CANDIDATES), default=list(CANDIDATES))
    p.add_argument('--tokens', type=float, default=3e5)
    p.add_argument('--seeds', nargs='+', type=int, default=SEEDS)
    p.add_argument('--table', action='store_true')
    args = p.parse_args()
    if args.table: return table(saved())
    text, tokenizers = corpus('shakespeare'), {}
    for seed in args.seeds:
        for name in args.only:
            known = dict(candidate=name, seed=seed, budget=args.tokens)
            if any(known.items() <= r.items() for r in saved()): continue
            row = one(name, text, seed, args.tokens, tokenizers)
            print(row, flush=True)
            runs = [*saved(), row]                      # another process may have added some
            FILE.write_text(json.dumps(dict(machine=machine(), runs=runs), indent=1) + '\n')
    table(saved())


if __name__ == '__main__': main()
