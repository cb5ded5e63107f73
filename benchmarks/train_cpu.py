"""Is a training step as fast as that of transformers' GPT-2?

The same shape (6 layers, 6 heads, width 384, context 256, vocabulary 4096, batch 8), the same
weights, the same loss (checked first), the same AdamW; steps alternate between the two, and the
ratio is the median over pairs. Where compilation is measured, ours is compiled by its own
`compile` (each block, and head with loss), the peer block by block and as a whole; the faster of
those two is what ours is beside. Memory that is freed stays with the process, as in `Trainer.fit`.

    python benchmarks/train_cpu.py            # float32 eager, then bfloat16 compiled
"""
import contextlib, copy, statistics, time, warnings
from common import keep
import torch
from torch import nn
from torch.nn import functional as F
from gptlab.costs import hold_memory
from gptlab.model import GPT, GPTConfig, gpt2_config, lm_loss
from gptlab.watching import matmul_peak
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

logging.set_verbosity_error()
warnings.filterwarnings('ignore')
V, T, B, SHAPE = 4096, 256, 8, dict(n_layers=6, n_heads=6, d_model=384)


def copy_weights(ours, peer):
    "Our GPT-2 weights into theirs (their matrices are transposed, q, k and v are one)"
    with torch.no_grad():
        peer.transformer.wte.weight.copy_(ours.embed.weight)
        peer.transformer.wpe.weight.copy_(ours.places.weight)
        for a, b in zip(ours.blocks, peer.transformer.h):
            for n in ('weight', 'bias'):
                turn = (lambda w: w.t()) if n == 'weight' else (lambda w: w)
                get = lambda m: getattr(m, n)
                get(b.ln_1).copy_(get(a.norm1))
                get(b.ln_2).copy_(get(a.norm2))
                get(b.attn.c_attn).copy_(turn(
                    torch.cat([get(a.attn.q), get(a.attn.k), get(a.attn.v)])))
                get(b.attn.c_proj).copy_(turn(get(a.attn.o)))
                get(b.mlp.c_fc).copy_(turn(get(a.mlp.up)))
                get(b.mlp.c_proj).copy_(turn(get(a.mlp.down)))
        for n in ('weight', 'bias'): getattr(peer.transformer.ln_f, n).copy_(getattr(ours.norm, n))


def models():
    torch.manual_seed(0)
    ours = GPT(gpt2_config(vocab_size=V, context_length=T, **SHAPE))
    peer = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=T, n_layer=6, n_head=6, n_embd=384,
                                      attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, bos_token_id=0,
                                      eos_token_id=0))
    copy_weights(ours, peer)
    modern = GPT(GPTConfig(vocab_size=V, context_length=T, **SHAPE))
    return dict(ours=ours, peer=peer, modern=modern)


def measure(mode, pairs):
    "Seconds of each step, in turn; the first steps are not counted"
    ms = models()
    r = torch.randint(0, V, (B, T+1))
    x, y = r[:,:-1].contiguous(), r[:,1:].contiguous()

    def ours_loss(m):
        total, n = lm_loss(m, dict(ids=x, targets=y))
        return total/n

    def peer_loss(m): return F.cross_entropy(m(x, use_cache=False).logits.flatten(0,1), y.flatten())
    losses = dict(ours=ours_loss, peer=peer_loss, modern=ours_loss)
    if 'compiled' in mode:
        ms['peer_whole'] = copy.deepcopy(ms['peer'])
        losses['peer_whole'] = torch.compile(peer_loss, dynamic=False)
    with torch.no_grad(): gap = abs(ours_loss(ms['ours']) - peer_loss(ms['peer'])).item()
    assert gap < 1e-4, f'the losses differ by {gap}: the two are not the same model'
    opts = {k: torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for k, m in ms.items()}
    if 'compiled' in mode:
        for k in ('ours', 'modern'): ms[k].compile(dynamic=False)
        for block in ms['peer'].transformer.h: block.compile(dynamic=False)
    cast = ((lambda: torch.autocast('cpu', torch.bfloat16)) if 'bf16' in mode
            else contextlib.nullcontext)
    times = {k: [] for k in ms}
    def step(k):
        start = time.perf_counter()
        with cast(): loss = losses[k](ms[k])
        loss.backward()
        opts[k].step()
        opts[k].zero_grad()
        return time.perf_counter() - start
    with hold_memory():
        for i in range(pairs+3):
            for k in ms:
                took = step(k)
                if i >= 3: times[k].append(took)
    med = {k: statistics.median(t) for k, t in times.items()}
    peer = min((k for k in ms if k.startswith('peer')), key=med.get)
    ratio = lambda k: statistics.median(p/o for o, p in zip(times[k], times[peer]))
    peak = matmul_peak(dtype=torch.bfloat16 if 'bf16' in mode else torch.float32)
    row = dict(mode=mode, loss_difference=gap, peer=peer,
               tokens_per_second={k: round(B*T/t) for k, t in med.items()},
               speed_over_peer=round(ratio('ours'), 3), modern_over_peer=round(ratio('modern'), 3),
               share_of_matmul_peak=round(ms['ours'].flops_per_token(T)*B*T/med['ours']/peak, 3),
               peak_gflops=round(peak/1e9))
    print(row, flush=True)
    return row


if __name__ == '__main__':
    keep('train_cpu', shape=SHAPE | dict(vocabulary=V, context=T, batch=B),
         rows=[measure('eager fp32', 15), measure('compiled bf16', 15)])
