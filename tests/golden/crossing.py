"""What one tree writes, another reads: checkpoints, models, tokenizers, tokens, runs.

    python crossing.py write FOLDER          in the old tree
    python crossing.py read FOLDER OUT.json  in both trees, each on a copy

`compare.py` runs it and compares what the two read. A reader that refuses with a ValueError is
recorded as {'refused': why}, which the report states and does not count as a difference.
"""
import json
import os
import sys
from pathlib import Path

from gptlab.all import *

import facts
import registry
from facts_batches import drawn, some_docs
from facts_hub import gated
from facts_models import logits_of, made, stir
from facts_text import NASTY, rank_tokenizer, sentencepiece, trained
from facts_training import RUNS_TO_CROSS, run_facts, run_of
from registry import digest, fact

FOLDER = Path(os.environ.get('GOLDEN_FOLDER', '.'))
TOKENIZERS = dict(bytes=lambda: ByteTokenizer(), learnt=lambda: trained('cl100k'),
                  ascii=lambda: AsciiTokenizer(), byt5=lambda: ByT5Tokenizer(),
                  ranks=rank_tokenizer, sentencepiece=sentencepiece,
                  characters=lambda: CharTokenizer.train(NASTY))
SAVED = dict(llama=lambda: gated(), own=lambda: GPTConfig(61, 96, 2, 4, None, 32, attn=MLA))


def refusable(f):
    "What f returns as one value, or that it refuses with a clear ValueError"
    def g(*args):
        try:
            return dict(read=f(*args))
        except ValueError as e:
            return dict(read=dict(refused=str(e).replace(str(FOLDER), 'FOLDER')))
    return g


# ---- writing

def write():
    for name, make in RUNS_TO_CROSS.items():
        run_of(**make(), dir=FOLDER/name, save_every=4).fit(8)
    for name, make in TOKENIZERS.items():
        make().save(FOLDER/(name + '.json'))
    for name, make in SAVED.items():
        save(stir(made(make())).eval(), None, FOLDER/('model ' + name))
    write_tokens(some_docs(), trained(), FOLDER/'tokens')
    stream, _ = batches(some_docs(), ByteTokenizer(), B=3, T=40, docs=True)
    drawn(stream, 11)
    (FOLDER/'stream.json').write_text(json.dumps(stream.state_dict()))
    ablate(lambda v, seed: dict(loss=v*seed), dict(a=1., b=2.), (1, 2), FOLDER/'runs.json')


# ---- reading

def reading(name, cases):
    "A fact for each case, that may be refused"
    return lambda f: fact(name, {c: c for c in cases})(refusable(f))


@reading('checkpoint of a run', RUNS_TO_CROSS)
def read_model(name):
    model, tok = load_model(FOLDER/name, device='cpu')
    return dict(logits=logits_of(model), ids=tok.encode('né'))


@reading('run goes on', RUNS_TO_CROSS)
def go_on(name):
    run = run_of(**RUNS_TO_CROSS[name](), dir=FOLDER/name, seed=99)
    return run_facts(run.resume(checkpoints_in(FOLDER/name)[0]).fit(8))


@reading('tokenizer in a file', TOKENIZERS)
def read_tokenizer(name):
    tok = load_tokenizer(FOLDER/(name + '.json'))
    return dict(ids=digest([tok.encode(t) for t in NASTY]), size=tok.vocab_size, bos=tok.bos)


@reading('model in a folder', SAVED)
def read_folder(name):
    model, _ = load(FOLDER/('model ' + name), device='cpu')
    return dict(logits=logits_of(model), size=model.n_params())


@fact('tokens in a folder of another tree')
@refusable
def read_tokens():
    t = open_tokens(FOLDER/'tokens', check=True)
    return dict(ids=digest(t.ids, t.starts), mark=t.mark, tok=digest(t.tok.encode_batch(NASTY)))


@fact('stream goes on')
@refusable
def stream_goes_on():
    stream, _ = batches(some_docs(), ByteTokenizer(), B=3, T=40, docs=True)
    stream.load_state_dict(json.loads((FOLDER/'stream.json').read_text()))
    return dict(next=drawn(stream, 20))


@fact('runs in a file')
@refusable
def read_runs():
    return dict(final=registry.exact(Runs.from_json(FOLDER/'runs.json').final('loss')))


def main():
    global FOLDER
    task, FOLDER = sys.argv[1], Path(sys.argv[2]).resolve()
    facts.check_tree()
    torch.set_num_threads(1)
    if task == 'write':
        FOLDER.mkdir(parents=True, exist_ok=True)
        return write()
    own = {n for n, f in registry.FACTS.items() if _module(f) == '__main__'}
    registry.FACTS = {n: f for n, f in registry.FACTS.items() if n in own}
    out = Path(sys.argv[3]).resolve()
    out.write_text(json.dumps(registry.compute(), indent=1), encoding='utf-8')


def _module(f):
    return getattr(f, 'func', f).__module__


if __name__ == '__main__':
    sys.exit(main())
