"""The table of good calls for tests/test_wrong_calls.py: one for every public function, class and
method, a line each, and small objects to call them with.

Behind `#` stands which of the wrong values (`v`) fit an argument all the same, where its annotation
does not say so: `argument: condition`, `any` (also of another type) or `False` (none). Such a
comment may go on in the lines below. RULES says it for names that mean the same everywhere.
"""
import contextlib
import functools
import http.server
import importlib
import io
import json
import shutil
import threading
from pathlib import Path

import numpy as np

# names that mean the same wherever they stand: which of the values of the right type fit
RULES = dict(
    seed='True', lr='v >= 0', wd='v >= 0', dropout='0 <= v < 1', warmup='0 <= v <= 1',
    momentum='0 <= v < 1', eps='v >= 0', softcap='v > 0', rank='v == 0', start='v >= 0',
    timeout='v > 0', backoff='v >= 0', tries='v >= 1', B='v >= 1', T='v >= 1', k='v >= 1',
    device='False', dtype='False', parts='v == {}', path="v != ''", folder="v != ''",
    dir="v != ''", text="True", source='True', tok='False', model='False', valid='True',
    errors='False', layer='v >= 0', every='v >= 1', workers='v >= 0', step='v >= 1',
    name='any', doing='any', unit='any', alt='any', licence='any', column='True', factor='v > 0',
    theta='v > 0', lang='True', at='isinstance(v, str)')

def plain(v):
    "May a tree of a checkpoint be this?"
    return type(v).__name__ in 'NoneType bool int float str list dict Tensor'.split()

# 10**9 of these is much memory, or a long time, and not wrong
SIZES = set('''B C D T V n n_layers n_heads n_kv_heads d_model d_ff d_head d_embed d_latent
    d_rope d_value d_expert vocab_size context_length vocab_multiple n_experts k shared steps
    tokens docs_per_shard flops seconds workers depth size buffer ns_steps tries backoff timeout
    layers width vocab n_docs window chunk bins heads r out gate_width tokens n_bytes layer
    copies draws accumulate'''.split())

# hooks: the library calls these, with what it made itself
HOOKS = set('''forward extra_repr enter prepare add keys_of rotate bias slopes speeds before
    beside after measure attach named show update before_fit before_step before_save after_backward
    after_step before_eval after_eval after_fit open log close mask mix_flops new_cache soon
    answer forget tell choose call one_step get_batch get_loss backward gradients become once at
    rate detach record show_sample entry form span right submit kept begin'''.split())

# what functions of the library return, made by nobody else
RECORDS = '''FlowMap Mask TokenView VocabView Score Verdicts LossReport Comparison TokenViews
    BadSteps Overlap RunTable Report Grid Replay Job Study StudyStatus TokenRead TokenProbs
    AttentionPatterns LogitLens Explanation SampleTable LongestCopy Question Answer TaskScore
    CoreTask CoreScore Predictions GroupMean Calibration RateCurve NoiseScale Matched
    Conversation JinjaTemplate Piece Request Columns RowCache RowBatch Full Rule Plan Speed
    Estimate Law'''.split()

# public, and not swept, and why
EXEMPT = dict(
    end_with_parent='ends this process', fetch_wheel='asks pip', hub_source='asks a server',
    push_to_hub='asks a server',
    **{'Remote.models': 'asks a server', 'Remote.stream': 'asks a server'},
    tiktoken_named='asks a server', Pinned='needs CUDA',
    Stateful='a protocol', wandb_history="reads what W&B wrote", flex='a backend',
    Executes='a protocol', Dimension='a contract', Sampler='a contract', Tuned='made by tune',
    work='a worker calls it',
    sdpa='a backend', matmul='a backend', sgd_rule='a rule: its Group checks it',
    adamw_rule='a rule', muon_rule='a rule',
    **dict.fromkeys(('lion_rule', 'mars_rule', 'normuon_rule', 'shampoo_rule', 'soap_rule',
                     'adafactor_rule', 'adahessian_rule', 'schedule_free_rule'), 'a rule'),
    balance_rule='a rule', hidden='a choice: Opt calls it',
    embedding='a choice: Opt calls it',
    balance_bias='a choice', fetch_eval='asks a server', lm_eval_model='needs lm-eval',
    constrained='needs llguidance',
    **dict.fromkeys(('differing', 'shared_end', 'after_context'), 'make_question calls it'),
    **dict.fromkeys(('lowest_mean', 'lowest_sum', 'lowest_per_char'), 'a rule'),
    all_greedy='a rule', serve='serves until it is stopped',
    serve_runs='serves until it is stopped', planned_parts='train calls it',
    saved_plan='train calls it', only_known='generate_text calls it',
    whole_pieces='generate_text calls it', open_end='stop_before calls it',
    context_length_of='generate calls it',
    OneRow='a layer: StaticDecoder puts it in',
    **{f'{kind}.{name}': 'the engine calls it'
       for kind, names in dict(Columns='advance kept lay_out', RowCache='join leave',
                               RowBatch='begin read next_logits join leave').items()
       for name in names.split()},
    estimate='without a speed it measures for ten seconds',
    **dict.fromkeys(('power_lines', 'step_law'), 'a rule: depth_plan calls it'),
    **dict.fromkeys(('house_groups', 'lab_rates', 'step_groups'), 'a rule: Plan calls it'),
    **dict.fromkeys(('loss_law', 'chinchilla_law', 'farseer_law'), 'a form: fit_law calls it'),
    **dict.fromkeys(RECORDS, 'a record'), **{'Rule.law': 'a rule: depth_plan calls it'})

CALLS = dict(
core='''
    set_seed(1)
    step_limit()
    svg_image('<svg/>', alt='a picture', width='9%') # alt: True
    flow_map('start')                                # key: False
    assert_equal(torch.ones(2), torch.ones(2), tol=.1) # tol: v >= 0
    evaluating(model())
    best_device('cpu')
    needs('cuda')                                    # what: False
    in_kernel()
    show_progress([1], doing='x', total=1, unit='x', delay=1., file=io.StringIO())
        # items: any; total: v >= 0; file: False
    cache_dir()
    sync_to_disk(file('a.txt'))                      # path: False
    atomic_path(folder('.')/'a')
    atomic_write('a', 'text')                        # data: True
    file_sha256(file('a.txt'))                       # path: False
    check_contract(model(), nn.Module)               # part: False
    dotted_name(GPT)                                 # obj: any
    resolve_name('gptlab.model.GPT', parts={})       # name: False
    run_info({})
''',
tokenizer='''
    Tokenizer()
    tok().encode('text')
    tok().decode_bytes([65])
        # ids: isinstance(v, (list, bytes)) and v != [None]
    tok().settings()
    tok().as_ids([65])
    tok().start(True)
    tok().decode([65], errors='strict')
    tok().decode_stream([65])
    tok().encode_batch(['text'])
    tok().encode_iterable(['text'])                  # texts: any
    tok().named_bytes([65])
        # ids: isinstance(v, (list, bytes)) and v != [None]
    tok().normal('text')
    tok().byte_counts('text')
    tok().to_dict()
    tok().save('tok.json')
    utf8('text')
    ByteTokenizer()
    CharTokenizer('abc')                             # alphabet: v == 'x'
    CharTokenizer.train('abc')                       # text: v == 'x'
    load_tokenizer(tok().save('tok.json'))           # path: False
    show_tokens(tok(), 'text')
    fuzz_texts(3, alphabet='ab')                     # n: v >= 0; alphabet: v == 'x'
    check_tokenizer(tok(), ['text'])
''',
bpe='''
    merge_pair([1, 2, 3], pair=(1, 2), new=5)        # ids: any; pair: False; new: any
    learn_merges({'abab': 3}, n=1)                   # n: v >= 0; order: False
    count_pieces('a text', workers=0, n_characters=6) # n_characters: v >= 0; pattern: v == 'x'
    BPE([(97, 98)])
        # pattern: False; special: v in ([], '', 'x', {}); merges: v == []
    BPE.train(docs(), 260)
        # text: v == 'x'; vocab_size: v >= 257; pattern: False; special: v in ([], '', 'x', {});
        # boundaries: v in ([], '', 'x', {}); engine: callable(v)
    bpe().encode('text', special='text')             # special: False
    bpe().decode_bytes([65])
    bpe().settings()
    bpe().to_tokenizer_json('a.json')
    bpe().to_tiktoken('a')
    bpe().encode_batch(['text'])
    learn(docs(), 1, GPT2_PATTERN, workers=0)
        # docs: isinstance(v, (str, list)); n: v >= 0; pattern: False; n_characters: v >= 0
    find_pattern('gpt2')                             # name: False
    show_vocab(bpe(), 5)                             # n: v >= 1
''',
data='''
    Corpus('mine', docs(), docs())                   # train: v != {}; valid: v != {}
    split_docs(docs(), valid=.1)                     # docs: False; valid: 0 < v < 1
    Source(lambda n: iter(docs()[n:]))               # n_docs: v >= 0; n_bytes: v >= 0; sha256: True
    Source(lambda n: iter(docs()[n:])).skip(1)       # n: v >= 0
    skip_documents(docs(), 1)                        # n: v >= 0
    repeatable(lambda: docs())
    corpus(docs(), valid=.1)                         # text: False; valid: 0 < v < 1
    make_stories(3)                                  # n_docs: v >= 0
    story_bits(make_stories(1)[0])                   # doc: False
    stories_bpb()
    read_text(file('a.txt'))                         # path: False
    text_files(file('a.txt'))                        # path: False
    jsonl(file('a.jsonl', '{"text": "one"}'))        # path: False
    hf_dataset(dataset())                            # ds: False
    parquet(shard_file())                            # path: False
''',
packing='''
    Tokens(ids(), np.array([0, len(ids())]), tok())  # ids: False; starts: False; sizes: v is None
    tokens().block(0)                                # k: v >= 0
    tokenize(docs(), tok())                          # docs: v == [] or v == {}
    concat(np.array([0, 50]), 8, None)               # starts: False; rng: v is None
    Batches(tokens(), B=2, T=8)                      # tokens: False
    stream().state_dict()
    stream().load_state_dict(stream().state_dict())  # state: False
    stream().reseed(1)
    stream().resize(B=2, T=8)
    FixedBatches([batch()])                          # items: v == []
    fixed().head(1)
    fixed_batches(tokens(), B=2, T=8, rows=2)        # tokens: False
    batches(docs(), tok(), B=2, T=8, valid_rows=2)   # text: False
    best_fit(np.array([0, 9, 50]), 8, None, buffer=9) # starts: False
    sliding_windows(np.array([0, 50]), 8, None, stride=4) # starts: False; rng: any
    crop_rate(concat, np.array([0, 9, 50]), 8)       # starts: False; pack: False
    Blocks(docs(), tok(), size=2)                    # source: v == []
    Blocks(docs(), tok(), size=2).block(0)           # k: v >= 0
    check_data(stream(), n=2)                        # data: False
''',
score='''
    bits_per_byte(1., 4)
    perplexity(1.)
    uniform_bpb()
    unigram_bpb(docs(), docs())                      # train: v == []; valid: False
    ngram_bpb(docs(), docs(), 2)                     # train: v == []; valid: False
    evaluate(model(), fixed(), tok())                # batches: False; tok: v is None
    gzip_bpb(docs(), docs())                         # train: v == []; valid: False
    xz_bpb(docs(), docs())                           # train: v == []; valid: False
    ppmd_bpb(docs(), docs())                         # train: v == []; valid: False
    cluster_error([1., 2.], [1, 2])                  # sums: False; counts: False
    strided(tokens(), T=8, stride=4, B=2)            # tokens: False; stride: 1 <= v <= 8
    prequential(model(), strided(tokens(), 8), sgd_maker, tok())
        # batches: False; make_opt: False; tok: v is None
    baselines(docs(), most=1000)                     # text: False
''',
blocks='''
    RMSNorm(8)
    LayerNorm(8)
    relu2(torch.ones(3))
    gelu(torch.ones(3))
    gelu_tanh(torch.ones(3))
    silu(torch.ones(3))
    MLP(8, 16)                                       # act: callable(v)
    GLU(8, 16)                                       # act: callable(v)
    SwiGLU(8, 16)                                    # act: callable(v)
    no_gradient(model())                             # module: False
    perturb_parameters(model(), std=.1)              # module: False
    check_part(partial(MLP, d_ff=8), C=8)            # make: False
    build_part(MLP, 8, d_ff=8)                       # part: callable(v)
''',
attention='''
    plain_attention(qkv(), qkv(), qkv())             # q: False; k: False; v: False; mask: False
    visible_mask(torch.arange(3)[None], torch.arange(3)[None])
        # qpos: True; kpos: True; qdocs: True; kdocs: True
    Seq(id_rows())
        # ids: False; docs: False; pos: False; caches: False
    Position()
    LayerCache()
    Layer()
    LearnedPositions(8, 16)
    rotate_halves(torch.ones(3, 8), torch.ones(3, 4), torch.ones(3, 4))
        # x: False; cos: False; sin: False
    RoPE(8)                                          # D: v % 2 == 0; n_heads: any
    Cache(window=4)
    Attention(8, 2, window=4)
        # C: v % 2 == 0; pos: False; n_heads: 8 % v == 0; n_kv_heads: 2 % v == 0
    check_attn(Attention, C=32, n_heads=4, n_kv_heads=1)
        # make: False; C: False; n_heads: v in (1, 2, 4); n_kv_heads: v in (1, 2, 4)
''',
model='''
    Block(8, partial(Attention, 8, 2), partial(MLP, 8, 8), RMSNorm)
        # attn: False; mlp: False; norm: False
    GPTConfig(vocab_size=9, n_layers=1, n_heads=2, d_model=8)
        # d_model: v % 4 == 0; n_heads: v in (1, 2); n_kv_heads: v in (1, 2)
    as_pair(torch.ones(1))                           # y: any
    layer_part([Attention], 0)                       # parts: any; i: any
    cfg().to_dict()
    modern_init(model())
    gpt2_init(model())
    GPT(cfg())                                       # cfg: False
    model()(id_rows(), targets=id_rows())
        # ids: False; targets: v is None; docs: False; pos: False; caches: False
    model().new_caches()
    model().n_params()
    model().flops_per_token(T=8)
    model().memory(B=1, T=8)
    lm_loss(model(), batch())                        # batch: False; aux_weight: v >= 0
    token_nll(torch.zeros(1, 2, 3), torch.zeros(1, 2).long()) # logits: False; targets: False
    gpt2_config(n_layers=1)
    llama_config(n_layers=1)
    swap(model(), MLP, lambda old: MLP(16, 8))       # cls: False; make: False
    check_model(cfg())                               # make: False
    run_eagerly(model())
    model().compile()
''',
optimizers='''
    bfloat16_units()                                 # device: v == 'cpu' if v else v is None
    round_stochastic(torch.ones(2))                  # generator: v is None
    polar_factor(torch.randn(3, 4), series='jordan')
        # steps: v >= 0; series: False; precision: False
    Group(sgd_rule)
        # rule: callable(v); at: callable(v) or isinstance(v, str); schedule: callable(v) or v == {}
    sgd()
        # at: callable(v) or isinstance(v, str); schedule: callable(v) or v == {}
    adamw(betas=(.9, .95))
        # at: callable(v) or isinstance(v, str); schedule: callable(v) or v == {}; betas: False
    muon(series='jordan', precision=None)
        # at: callable(v) or isinstance(v, str); ns_steps: v >= 0; series: False;
        # precision: v is None
    Opt(model(), adamw())                            # rounding: v is None
    opt().step()                                     # closure: True
    opt().settings()
    opt().lrs()
    opt().state_dict()
    opt().load_state_dict(opt().state_dict())        # state_dict: False
    kept_opt().check(kept())                         # model: False
    check_rule(adamw())                              # group: False
''',
schedules='''
    Curve(lambda p: 1., 'one')                       # f: callable(v); steps: v is None or v >= 1
    constant()(.5)                                   # progress: True
    piecewise_linear((0, 0), (1, 1), name='up')
    constant(.1)
    linear(.1, .1)
    wsd(.1, .2)                                      # cooldown: 0 <= v <= .9
    cosine(.1)                                       # warmup: 0 <= v < 1
    inverse_sqrt(.1)                                 # warmup: 0 < v <= 1
    power_law(.2, warmup=10)                         # warmup: v >= 0; start: v >= 0
    exponential(.99)                                 # rate: 0 < v <= 1
    by_loss(7.)                                      # base: v >= 1
    plot_curves(one=constant())                      # one: False
    apply_schedule(opt(), constant(), .5)
        # opt: False; schedule: v is None or v == {}; progress: True
''',
checkpoints='''
    rng_state()
    set_rng_state(rng_state())                       # state: False
    flatten_tree(dict(a=torch.ones(1)), {})          # tree: plain(v)
    unflatten_tree(flatten_tree(dict(a=1), {}), {})
        # tree: any; tensors: any
    save_checkpoint('step', a=dict(b=1))             # a: plain(v)
    load_checkpoint(checkpoint())                    # path: False
    checkpoints_in('runs')                           # folder: v != ''
    find_checkpoint(saved(), 'latest')               # path: False; which: v in (1, -1)
    latest_checkpoint(saved())                       # folder: False
    load_found(saved(), 'latest')                    # path: False; which: v in (1, -1)
    load_weights(model(), model().state_dict())      # state: False
    check_weights(model(), model().state_dict())     # state: False
    non_finite(model().state_dict())
    load_model(saved(), which='latest')              # path: False; which: v in (1, -1)
    prune_checkpoints(saved(), keep=1)               # best: v >= 0; every: v >= 0
    run_lock(folder('a'))                            # folder: v != ''
    new_folder('a/b')
    CheckpointWriter()
    CheckpointWriter().save('step', a=dict(b=1))
        # keep: v == {}; a: plain(v)
    CheckpointWriter().wait()
    CheckpointWriter().poll()
    join_ranks()
    Ranks()
    Ranks().sum(torch.ones(2))                       # t: any
    Ranks().first(1.)                                # x: any
    Ranks().gather(dict(a=1))                        # tree: any
''',
trainer='''
    Trainer(kept(), kept_opt(), stream(), fixed())
        # opt: False; train: v == []; valid: v == []; loss: callable(v);
        # schedule: v == {} or callable(v); callbacks: v == []; clip: v > 0; eval_every: v >= 0;
        # save_every: v >= 0; save_seconds: v >= 0; on_nan: False; spike: v > 1;
        # keep: v == {} or v >= 1; accumulate: v >= 1
    run().fit(steps=1)
    run().fit(seconds=.01)                           # seconds: 0 < v
    run().fit(tokens=1)
    run().fit(flops=1)                               # flops: 0 < v
    fitted().evaluate()
    run().state_dict()
    run().save()
    run().load_state_dict(run().state_dict())        # state: False
    run().resume(saved(), which='latest')            # path: False; which: v in (1, -1)
    fitted().series('loss')                          # key: False; x: False
    fitted().plot('loss')                            # key: False; x: False; ax: False
''',
watching='''
    format_duration(3.)                              # seconds: any
    lines_read(fitted())                             # trainer: False
    status_line(fitted())                            # trainer: False
    View()
    Bar()
    Lines()
    curve_svg(dict(loss=([1., 2.], [3., 2.])))       # lines: v == {}
    WidgetView(every=.5)                             # every: v >= 0; sample: callable(v)
    LiveView(every=.5)                               # every: v >= 0; sample: callable(v)
    PageView('run.html', every=.5)                   # every: v >= 0
    matmul_peak('cpu', torch.float32, 8)
    flops_utilization(fitted(), peak=1e12)           # trainer: False; peak: v > 0
    device_peak(fitted())                            # trainer: False
    LayerStats()                                     # pick: callable(v)
    Silent()
    default_watcher()
    Trackio('mine', every=10)
''',
generation='''
    temperature(1.)
    top_k(3)
    top_p(.9)                                        # p: 0 < v <= 1
    RowFilter(lambda logits, rows: logits)           # f: callable(v)
    filter_logits(torch.randn(1, 9), [top_k(3)])
        # filters: v == [] or v == {}; logits: True; rows: any
    draw_token(torch.randn(1, 9), [top_k(3)])
        # filters: v == [] or v == {}; generator: False; logits: True; rows: any
    make_generator(1)
    pad_left([[1, 2], [3]])                          # rows: v == []
    Reader(model(), [[1, 2]])                        # rows: False; reach: v >= 1
    Reader(model(), [[1, 2]]).restart(2)             # n: v >= 1
    Reader(model(), [[1, 2]]).read()
    Reader(model(), [[1, 2]]).next_logits()
    Reader(model(), [[1, 2]]).append(torch.tensor([[3]])) # new: False
    Reader(model(), [[1, 2]]).select(torch.tensor([0])) # index: False
    select_rows(read_caches(), torch.tensor([0]))    # caches: v in ([], ()); index: False
    continue_rows(Reader(model(), [[1, 2]]))
        # reader: False; filters: v == [] or v == {}; generator: False; copies: v >= 1
    generate_rows(model(), [[1, 2]], 3)              # rows: False; n: v >= 0; copies: v >= 1
    generate(model(), [1, 2], 3, stop=[3])
        # ids: v == []; n: v >= 0; stop: v in ([], {}, b'x')
    generate_text(model(), tok(), 'text', 3)         # prompt: True; n: v >= 0
    sample_from(run(), 'text', 3)                    # trainer: False; n: v >= 0
''',
gallery='''
    lion()                                           # at: callable(v) or isinstance(v, str)
    mars()                                           # at: callable(v) or isinstance(v, str)
    normuon()                                        # at: callable(v) or isinstance(v, str)
    shampoo()                                        # at: callable(v) or isinstance(v, str)
    soap()                                           # at: callable(v) or isinstance(v, str)
    adafactor()                                      # at: callable(v) or isinstance(v, str)
    adahessian()                                     # at: callable(v) or isinstance(v, str)
    schedule_free()
        # at: callable(v) or isinstance(v, str); schedule: callable(v) or v == {}
    hutchinson(squares(), [kept_parameter()])
        # loss: False; params: v == []; generator: v is None
    HessianDiagonal(1)
    estimated().of(kept_parameter())                 # param: False
    averaged_weights(free_opt())                     # opt: False
    ScheduleFreeAverage()
    ScheduleFreeAverage().state_dict()
''',
sampling='''
    min_p(.1)                                        # p: 0 <= v <= 1
    typical_p(.1)                                    # p: 0 < v <= 1
    logit_bias({1: 1.})                              # bias: v == {}
    repetition_penalty(1.1)                          # r: v > 0
    presence_penalty(.1)                             # a: any
    frequency_penalty(.1)                            # a: any
    stop_before(['a', 'b'], 'end')                   # pieces: any; strings: v == 'x'
    stop_when(['a', 'b'], bool)                      # stream: any; done: callable(v)
    Prefix(model(), [1, 2])                          # ids: False
    Prefix(model(), [1, 2]).generate([3], 3)         # ids: v == b'x'; n: v >= 0
    beam_search(model(), [1, 2], 3)                  # ids: False; n: v >= 0; width: v >= 1
    accept_or_replace(torch.ones(1, 3)/3, torch.ones(1, 3)/3, torch.tensor([1]))
        # p: False; q: False; proposed: False; generator: False
    rewind(Reader(model(), [[1, 2]]), 0)             # reader: False; n: v >= 0
    speculative(model(), model(), [1, 2], 3)
        # draft: False; ids: False; n: v >= 0; k: v >= 1
    FixedCache(9)                                    # length: v >= 1
    StaticDecoder(model(), 9, False)                 # length: v >= 1
    StaticDecoder(model(), 9, False).new_caches()
''',
serve='''
    ApiError(400, 'wrong', param='n', code='x')      # status: v >= 400; message: True
    ApiError(400, 'wrong').body()
    read_json(b'{}')                                 # raw: v == b'x'
    read_request(chat_fields, dict(model='m', messages=[dict(role='user', content='x')]))
        # fields: v == {}; given: False
    request_filters(read_request(completion_fields, dict(model='m', prompt='x'))) # r: False
    models_in('runs')
    ModelPool({}, dir='runs', keep=1, rows=2, waiting=3)
        # models: v == {}; rows: v >= 1; waiting: v >= 1; keep: v >= 1
    ModelPool({}).names()
    ModelPool({'m': (model(), tok())}).use('m')      # name: v == 'm'
    ModelPool({}).close()
    make_app({}, dir='runs', limit=9)
        # models: v == {}; host: True; origins: v == (); limit: v >= 1
    chat_page()
    serving({}, port=0)                              # models: v == {}; port: v == 0; host: False
''',
batching='''
    Engine(model(), tok(), rows=2)
        # rows: v >= 1; waiting: v >= 1; tokens: v is None or v >= 1; chunk: v >= 1;
        # longest: v >= 1; reach: v is None or v >= 1
    Engine(model(), tok()).submit('a', 3, stop='x', stop_ids=[3], seed=1, top=1)
        # prompt: v == 'x' or v == ''; n: 1 <= v <= 4096; stop: v in ([], {}, 'x');
        # stop_ids: v in ([], {}, '', b'x'); top: v >= 0
    Engine(model(), tok()).submit('a', 3).text()
    Engine(model(), tok()).submit('a', 3).cancel()
    Engine(model(), tok()).submit('a', 3).listen(print) # f: callable(v)
    Engine(model(), tok()).step()
    Engine(model(), tok()).close()
    Engine(model(), tok()).stats()
''',
chat='''
    Part('a')                                        # text: any
    check_messages(talk_of_two())                         # messages: v == []
    Template(str, str)
        # opening: callable(v); end: callable(v); between: True; bos: any; needs: any
    Template(str, str).parts(talk_of_two())               # messages: v == []; names: any
    Template(str, str).render(talk_of_two())              # messages: v == []
    Template(str, str).encode(tok(), talk_of_two())       # messages: v == []
    Template(str, str).stops(tok())
    plain_roles()
        # user: v != ''; assistant: v != ''; system: v != ''; after: True; end: v != ''
    chatml()
    llama_style()
    marked_roles()
    jinja_template('a', '', '')
        # source: True; bos_token: True; eos_token: True
    jinja_template('a').parts(talk_of_two())              # messages: v == []; names: any
    jinja_template('a').run(talk_of_two(), True)          # messages: any; reply: any
    jinja_template('a').stops(tok())
    template_of(tok())                               # what: False
    fitting(plain_roles(), tok(), talk_of_two(), 99, 9)
        # template: False; messages: v == []; limit: v is None or v > 20; room: v >= 0
    Chat(model(), tok(), plain_roles(), n=3, say=str)
        # template: False; filters: callable(v); temperature: v >= 0; top_k: v is None or v >= 1
        # top_p: 0 < v <= 1; n: v >= 1; system: True; say: callable(v)
    a_chat().undo()
    a_chat().retry()
    a_chat().clear()
    a_chat().stop()
    a_chat().save('chat.json')
    a_chat().load(a_chat().save('chat.json'))        # path: False
    a_chat().widget()
    ChatWidget(a_chat())                               # chat: False
    Remote('http://127.0.0.1:9/v1', 'm', timeout=1)  # where: False; model: True; key: False
    talk(a_chat(), lambda prompt: '/quit', str)
        # chat: False; read: callable(v); write: callable(v)
''',
ablation='''
    t_factor(3)                                      # n: v >= 0; alpha: 0 < v < 1
    Runs(records())                                  # records: v == []
    Runs(records()).has('a', 0)                      # variant: any; seed: any
    Runs(records()).final('bpb')                     # key: False
    Runs(records()).plot('bpb')                      # key: False; x: False; ax: False
    Runs(records()).table('bpb', 'a')
        # key: False; vs: False; alpha: 0 < v < 1; correct: False
    Runs(records()).to_json('runs.json')
    Runs.from_json(Runs(records()).to_json('runs.json')) # path: False
    ablate(lambda v, s: dict(bpb=1.), dict(a=1), seeds=[1, 2], path='runs.json')
        # run: callable(v); variants: v == [None]; seeds: v == [None]
''',
stacks='''
    ParallelBlock(8, partial(Attention, 8, 2), partial(MLP, 8, 8), RMSNorm)
        # attn: False; mlp: False; norm: False
    ScaledBlock(8, partial(Attention, 8, 2), partial(MLP, 8, 8), RMSNorm)
        # attn: False; mlp: False; norm: False; h: False; z: False
    parameter_roles(model())
    draw_by_role(model(), nn.init.normal_)           # matrix: callable(v)
    nanochat_init(model())
    hlb_init(model())
    mup_init(model(), head=0.)
    mup_groups(model(), cfg(), lr=1e-3)              # base: False; make: False
''',
surgery='''
    require_described(model())
    check_config(model())
    compare_with_config(cfg(), model().state_dict()) # tensors: False
    to_gqa(Attention(8, 2), 1)                       # attn: False; n_kv_heads: v in (1, 2)
    LoRA(nn.Linear(4, 4), r=2)                       # old: False; r: v <= 4; alpha: v > 0
    LoRA(nn.Linear(4, 4), r=2).merged()
    n_learning(model())
    add_lora(model(), r=2)                           # at: callable(v); alpha: v > 0; r: v <= 16
    lora_state(lora())
    load_lora(lora(), lora_state(lora()))            # state: False
    rebuild(model(), n_layers=1)                     # fill: callable(v)
    mean_rows(torch.randn(3, 4), 2)                  # k: v >= 0
    widen_vocab(model(), 300)                        # n: v >= 257; rows: callable(v)
    add_layers(model(), 2)                           # n_layers: v >= 1
''',
loader='''
    write_tokens(docs(), tok(), 'tokens')            # source: False
    open_tokens(token_folder())                      # folder: False
    Slices(tokens(), size=2)                         # tokens: False
    Slices(tokens(), size=2).block(0)                # k: v >= 0
    Ahead(Blocks(docs(), tok(), size=5), workers=1)  # blocks: False; workers: v >= 1; depth: v >= 1
    Prefetch(stream(), depth=2)                      # stream: False; put: callable(v)
    Prefetch(stream()).state_dict()
    Prefetch(stream()).load_state_dict(stream().state_dict()) # state: False
    Prefetch(stream()).resize(B=2, T=8)
    Prefetch(stream()).reseed(1)
    Ring(2, lambda b: b)                             # send: callable(v)
    shard(fixed(), 0, 1)                             # fixed: v == []; world_size: v >= 1
    fast_batches(docs(), tok(), B=2, T=8, size=5)
        # text: False; pack: False; depth: v >= 0; device: v is None
    Grow({10: (2, 8)})                               # plan: False
''',
tokenizers='''
    TableTokenizer()
    ByT5Tokenizer()
    CharwiseTokenizer()
    AsciiTokenizer().report('text')
    AsciiTokenizer()                                 # vocab: False
    StrippedAsciiTokenizer()
    RankTokenizer(ranks())
        # ranks: False; pattern: False; special: v == {}
    RankTokenizer(ranks()).to_tokenizer_json('t.json')
    add_special(RankTokenizer(ranks()), ['<|x|>'])   # names: v in ([], {}, '', 'x')
    truncate_vocab(bpe(), 258)                       # vocab_size: v >= 257
    rustbpe_engine(docs(), 2, GPT2_PATTERN)
        # docs: v in ('', 'x', [], {}); n: v >= 0; pattern: False
    tokenizers_engine(docs(), 2, GPT2_PATTERN)
        # docs: v in ('', 'x', [], {}); n: v >= 0; pattern: False
    HFTokenizer(tokenizer_json())                    # source: False; engine: False
    SentencePieceTokenizer(pieces())                 # model: False
    hf().encode('text')
    hf().encode_batch(['text'])
    hf().byte_counts('text')
    sp().encode('text')
    sp().decode([4], errors='strict')                # ids: v in ([], b'x')
    sp().to_sentencepiece('t.model')
    HFTokenizer.from_settings(tokenizer_json())      # source: False; engine: False
    ByT5Tokenizer().encode('text')
    AsciiTokenizer().encode('text')
    AsciiTokenizer().normal('text')
    AsciiTokenizer().byte_counts('text')
    AsciiTokenizer().decode_bytes([65])              # ids: v in ([], b'x')
    AsciiTokenizer().settings()
    StrippedAsciiTokenizer().encode('text')
    SentencePieceTokenizer.load(file('t.model', pieces())) # path: False
    encode_special(bpe(), 'text', allowed='all')
        # allowed: v in ([], {}, ''); refused: v in ([], {}, '')
    text_kinds(100)                                  # size: v >= 1
    bytes_per_token(tok(), 'text')                   # text: v in ('', 'x', [], {})
    renyi_efficiency(tok(), 'text', alpha=2.5)       # text: v == 'x'; alpha: v >= 0
    compare_tokenizers(dict(a=tok()), 'text')        # toks: False; texts: v == 'x'
    show_all(dict(a=tok()), 'text')                  # toks: False
    open_tokenizer('bytes')                          # name: False
''',
corpora='''
    clip_bytes('text', 3)                            # n_bytes: v >= 0
    cap_documents(docs(), 100)                       # source: v == []
    Mixture(dict(a=docs()), np.array([1.]))          # sources: False; p: False; n_bytes: v >= 1
    mixture(dict(a=docs()), dict(a=1.))              # sources: False; weights: False; alpha: v >= 0
    mixture(dict(a=docs()), dict(a=1.)).labelled(0)
    mixture(dict(a=docs()), dict(a=1.)).shares(10)
    Rows([dict(a=1)])                                # rows: v == [] or v == {}
    four_recipe('deu_Latn')                          # languages: False
    four_sources(100, recipe=list(four_recipe('deu_Latn')), load=lambda *a, **k: docs())
        # recipe: False; load: callable(v); alpha: v >= 0
    reshard(docs(), 'shards', docs_per_shard=5)
        # source: False; bytes_per_shard: v >= 1; licence: True
    fetch_file(server('a.txt'), 'a', tries=1)        # url: False; sha256: False
    count_shards(server(''), tries=1)                # base_url: False
    download_shards(server(''), 'a', n=1, tries=1)   # base_url: False
    provenance(docs_corpus())                        # what: False
    corpus_overlap(docs_corpus(), n=3)               # what: False; near: 0 < v <= 1
    corpus_overlap(docs_corpus(), n=3).rows()
    corpus_overlap(docs_corpus(), n=3).worst(2)
    dump_text(fixed(), tok(), 1)                     # what: v == []
''',
positions='''
    Sinusoids(8, 16)                                 # C: v % 2 == 0; base: v > 0
    ScaledRoPE(8)                                    # D: v % 2 == 0; n_heads: any
    halves_to_pairs(torch.ones(8, 4), 4)             # D: v in (2, 4, 8); weight: True
    pairs_to_halves(torch.ones(8, 4), 4)             # D: v in (2, 4, 8); weight: True
    NTK(8, factor=2.)                                # D: v % 2 == 0; n_heads: any
    YaRN(8, factor=2., context_length=16)            # D: v % 2 == 0; n_heads: any
    Llama3RoPE(8, factor=2., context_length=16)      # D: v % 2 == 0; n_heads: any
    extend_context(model(), 2.)                      # factor: v > 1; scheme: False
    ALiBi(8, 2)                                      # D: any
    LinearBias(8, 2)                                 # D: any; start: True
''',
attentions='''
    OpenAttention(8, 2)
        # C: v % 2 == 0; pos: False; adds: v == []; backend: callable(v); cache: callable(v);
        # n_heads: v <= 4; n_kv_heads: v <= 2; qk_expand: v > 0; v_expand: v > 0; vocab_size: any;
        # layer: any; n_layers: any; context_length: any
    Add()
    Gate(8, 2, 2, 8)                                 # n_kv_heads: any
    ValueEmbedding(16, 2, 2, 8, vocab_size=9)
        # gate_width: v <= 16; n_heads: any; scale: True
    PreviousValue(8, 2, 2, 8)
        # C: any; n_kv_heads: any; d_value: any; scale: True
    PairValue(8, 2, 2, 8, 16)
        # C: any; n_kv_heads: any; scale: True; strength: True
    InductionValue(8, 2, 2, 8)
        # C: any; n_kv_heads: any; d_value: any; scale: True; window: any
    QKGain(8, 2, 2, 8, d_head=4)
        # C: any; n_heads: any; n_kv_heads: any; d_value: any
    window_pattern('SL', 2, 4)                       # pattern: False; attn: callable(v)
    StaticCache(16)
    RingCache(4)
    cache_bytes(model().new_caches())                # caches: v == []
''',
moe='''
    route_tokens(torch.rand(3, 4), 2, bias=torch.zeros(4)) # scores: False; k: v <= 4; bias: False
    MoE(8, 16, n_experts=4)
        # k: v <= 4; shared: v >= 0; expert: callable(v); gate: False; balance: False;
        # capacity: v > 0
    balance_loss(torch.zeros(3, 1, dtype=torch.long), torch.rand(3, 4))
        # chosen: False; scores: False
    load_of(torch.zeros(3, 1, dtype=torch.long), 4)  # chosen: True
    balance_experts()                                # at: v is None or callable(v)
    expert_load(moe(), batch())                      # batch: False
    dropped_share(torch.ones(4)/4, 1.25)             # load: True; capacity: v > 0
    active_params(moe())
    top_share(torch.rand(1, 8), .5)                  # r: True; share: 0 < v <= 1
    MoD(8, partial(Attention, 8, 2), partial(MLP, 8, 8), RMSNorm)
        # attn: False; mlp: False; norm: False; share: 0 < v <= 1; inner: callable(v)
''',
tasks='''
    multiple_choice(items()[0])                      # item: False
    schema(dict(context_options=['a', 'b'], continuation='c', gold=0)) # item: False
    completion(dict(context='a', continuation='b'))  # item: False
    sentence_pair(dict(sentence_good='a', sentence_bad='b')) # item: False
    Task(items(), shots=1, chance=.5)                # items: False; shots: v >= 0
        # form: callable(v); span: callable(v); right: callable(v); delimiter: True; name: True
        # chance: 0 <= v < 1
    make_question(task(), items(), 0, tok())         # items: False; i: v == 0; task: False
    answer_questions(model(), [question()], B=2, context=8)
        # questions: v == []; context: v == 8
    crop_question(question(), 2)                     # q: False; limit: v >= 1
    score_task(model(), tok(), task(), n=2, B=2, context=8)
        # task: False; n: v >= 1; context: v == 8
    read_task(task_file(), 'name')                   # path: False
    core_score(model(), tok(), '.', n=2, tasks=core_tasks())
        # folder: False; n: v >= 1; tasks: False
    git_blob(b'a')                                   # data: True
    grouped([1.], [1], [1])                          # values: any; keys: any; clusters: any
    predict_documents(model(), tok(), docs(), context=8, stride=2, B=2)
        # docs: False; context: v == 8; stride: 1 <= v <= 8
    calibration(predict_documents(model(), tok(), docs()), bins=2) # p: False
''',
diagnostics='''
    match_names(dict(a=1), '*')                      # named: v == {}
    Probe('*')
    probed().plot('std')                             # key: False; ax: False
    Probe('*').write('a.jsonl')
    ForwardProbe('*')
    Activations('*', bins=2)                         # bins: v >= 0
    OutputGradients('*')
    ParameterGradients('*')
    UpdateRatios('*')
    attention_weights(model(), batch())              # batch: False
    attention_entropy(torch.ones(2, 3, 3)/3)         # weights: True
    AttentionMaps('*attn', batch=batch())            # batch: False
    ForwardHook(lambda name, x: None)                # f: callable(v)
    GradientHooks([centralize])                      # hooks: v == []
    clip_by_value(1.)                                # limit: v > 0
    clip_by_norm(1.)                                 # limit: v > 0
    centralize(torch.ones(2, 3))
    make_hooks([dict(hook='centralize')])            # config: v == [] or v == {}
    replay(fitted(), 1, run)                         # run: False; make: False
    bad_steps(folder('a'))                            # folder: False
''',
signals='''
    scales(model(), batch())                         # batch: False; modules: False
        # loss: callable(v)
    find_rate(run, steps=2)                          # make: callable(v); low: 0 < v < 100
        # high: v > 1e-3; steps: v >= 2; blow_up: v > 1
    noise_scale(model(), [batch() for _ in range(3)]) # batches: False; loss: callable(v)
    dead_units(model(), [batch()])                   # batches: False; loss: callable(v)
''',
explain='''
    next_token_probs(model(), dict(ids=id_rows()))   # batch: False
    text_row(model(), tok(), 'a text')               # text: isinstance(v, str)
    token_probs(model(), tok(), 'a text', k=2)       # text: isinstance(v, str)
    attention_patterns(model(), tok(), 'a text', '*.attn', tokens=9)
        # text: isinstance(v, str); head: v == 0
    lens_logits(model(), dict(ids=id_rows()))        # batch: False
    logit_lens(model(), tok(), 'a text', k=2, tokens=9) # text: isinstance(v, str)
    explain_text(model(), tok(), 'a text', k=2, tokens=9) # text: isinstance(v, str)
    sample_checkpoints(saved(), ['a'], 2, docs=docs())
        # run: False; prompts: False; n: v >= 0; filters: v == [] or callable(v)
        # docs: isinstance(v, str) or v == []
    longest_copy('a text', docs())                   # sample: v
        # docs: isinstance(v, str) or v == []
    chance_copy(9, docs())                           # docs: v == 'x'
    logit_lens(model(), tok(), 'ab').plot()          # ax: False
    attention_patterns(model(), tok(), 'ab').plot(1.) # size: v > 0
''',
hub='''
    HubLlama3(8)
        # D: v % 2 == 0; low: v > 0; high: v > 1; n_heads: any
    HubYaRN(8)
        # D: v % 2 == 0; slow: v > 0; fast: v > 1; n_heads: any
    NormedLinear(8, 8, 4)                            # D: 8 % v == 0
    HubAttention(8, 2)
        # C: v % 2 == 0; n_heads: v <= 4; n_kv_heads: v <= 2; pos: callable(v)
    model_traits(cfg())                              # cfg: False
    family_obstacles(cfg())                          # cfg: False
    family_of(cfg())                                 # cfg: False
    read_config(hub_config())                        # d: False
    write_config(llama_cfg(), 'llama')               # cfg: False; family: False
    tensor_names(llama_cfg(), 'llama')               # cfg: False; family: False
    empty_model(cfg())                               # cfg: False
    load(hub_folder())                               # source: False; revision: True
    save(llama(), bpe(), 'out')                      # family: False; shard: v >= 1; tok: v is None
    register_in_transformers()
''',
linear_attentions='''
    MLA(8, 2)
        # C: v % 2 == 0; n_heads: v <= 4; n_kv_heads: v <= 2; pos: False; backend: callable(v);
        # cache: callable(v); d_rope: v % 2 == 0; vocab_size: any; layer: any; n_layers: any;
        # context_length: any
    delta_rule(qkv(), qkv(), qkv(), torch.rand(1, 2, 3), chunk=2)
        # q: False; k: False; v: False; beta: False; state: False; fresh: False
    StateCache()
    DeltaAttention(8, 2)
        # C: v % 2 == 0; n_heads: v <= 8; n_kv_heads: v <= 2; pos: callable(v)
    check_grid(dict(plain=Attention), dict(rope=RoPE), dict(plain=Cache))
        # attentions: False; positions: False; caches: False
''',
formats='''
    model_card(model(), tok(), prompts=['text'])
        # run: False; data: v == 'x'; prompts: v in ('x', '', [], {})
    save_gguf(llama(), bpe(), 'a.gguf')
''',
costs='''
    MemoryTracker(torch.ones(2))
    costs(model(), B=1, T=8)
    hold_memory()
''',
trackers='''
    plain_value(1)                                   # v: any
    run_config(run())                                # trainer: False
    run_name(run())                                  # trainer: False
    Backend()
    JSONL('runs')
    Tracker(JSONL('runs'), every=10)
    TensorBoard('runs')
    WandB('mine', dir='runs', mode='offline')        # mode: False; project: v == 'x'
    TrackioRun('mine', every=10)                     # project: v == 'x'
''',
groups='''
    make_groups(dict(all=dict(opt='adamw', lr=1.)), dict(all=None))
        # settings: False; at: False; rules: v is None; base: v == {}
    check_groups(model(), dict(all=adamw()))         # groups: False
    group_table(model(), dict(all=adamw()))          # groups: False
    read_groups(file('a.yaml', 'all: {opt: adamw, lr: 1.0}')) # path: False
    write_groups(dict(all=dict(opt='adamw', lr=1.)), 'a.yaml') # settings: False
    lab_groups(dict(all=dict(opt='adamw', lr=1.)), 64, at=dict(all=None))
        # settings: False; width: v >= 1; decay_scale: v >= 0; rules: v is None; at: False;
        # base: v == {}
    group_settings(dict(all=adamw()))                # groups: v == {}; rules: v is None
    hlb_rates(1000)                                  # n_params: v >= 3
    hlb_groups(1000, lr=1.)                          # n_params: v >= 3; at: v is None
    doubling(8, 2, 16)
        # start: 1 <= v <= 16; every: v >= 1; limit: v >= 8
    GrowLength({0: 8}, 64)                           # lengths: False; tokens: v >= 8
    GrowBatch({0: 64})                               # sizes: False
    Microbatches(bool)
        # expected: callable(v); every: v >= 1; gain: 0 < v <= 1; limit: v is None or v >= 1
    Microbatches(bool).count(3)                      # step: v >= 0
    Microbatches(lambda t: 1.).update(3, 1.)         # step: v >= 0; rms: v >= 0
    Microbatches(bool).state_dict()
    Microbatches(bool).load_state_dict(Microbatches(bool).state_dict()) # state: False
    cool_down(run(dir='branch'), saved(), 2)
        # run: False; trunk: False; steps: v >= 1; which: v in (1, -1); end: v >= 0
''',
steering='''
    WeightAverage(.9)                                # decay: 0 <= v < 1
    WeightAverage(.9).reset()
    WeightAverage(.9).update(model())
    average().weights(model())
    average().copy_to(model())
    average().state_dict()
    average().load_state_dict(average().state_dict()) # state: False
    TailAverage(.2)                                  # fraction: 0 < v <= 1
    load_average(saved_average())                    # path: False; which: v in (1, -1); name: False
    EarlyStop(patience=3, key='bpb')                 # key: v == 'x'
    EarlyStop().state_dict()
    EarlyStop().load_state_dict(EarlyStop().state_dict()) # state: False
''',
runs='''
    list_runs(folder('runs'))
    find_run('a', run_folder())                      # run: False; folder: False
    run_identity('a', run_folder())                  # run: False; folder: False
    compare_runs('a', 'a', run_folder())             # a: False; b: False; folder: False
    rename_run(run_folder()/'a', 'b')                # folder: False; name: v == 'x'
    delete_run(run_folder()/'a')                     # folder: False
    RankRows(stream(), 0, 1)                         # stream: False; world_size: v >= 1
    RankRows(stream(), 0, 1).state_dict()
    RankRows(stream(), 0, 1).load_state_dict(RankRows(stream(), 0, 1).state_dict()) # state: False
    RankRows(stream(), 0, 1).resize(B=2, T=8)
''',
studies='''
    study(lambda v, s: dict(bpb=1.), dict(a=1), [0], path='lines')
        # run: callable(v); variants: v == [None]; seeds: v == [None]; executor: callable(v)
        # retries: v >= 0; threads: v >= 1
    open_study(made_study())                         # path: False
    study_status(made_study())                       # path: False
    drive([])                                        # jobs: v == []; executor: callable(v)
        # retries: v >= 0
    noise_floor(Runs(three_records()), 'bpb')        # runs: False; key: False; seeds: v == []
        # power: .05 < v < 1; alpha: 0 < v < .8
    paired_scatter(Runs(three_records()), 'bpb')     # runs: False; key: False
    noise_sources(crossed_records(), 'bpb')          # runs: False; key: False; names: False
    signal_to_noise(ladder())                        # runs: False
    join_studies(dict(a=made()), ['threads'])        # studies: False; same: v in ([], {})
    Runs(records()).to_csv('runs.csv')
    Runs(records()).to_frame()
    Runs(records()).to_trackio('lab', every=1)       # project: v != ''
''',
sweeps='''
    Range(1., 9.)                                    # low: v < 9; high: v > 1
    Range(1., 9.).position(2.)                       # value: 1 <= v <= 9
    Choice(1, 2)                                     # values: any
    with_settings(dict(lr=1), dict(lr=2))            # variant: callable(v); settings: v == {}
    as_space(dict(lr=[1, 2]))                        # space: False
    RandomSearch(dict(lr=[1, 2]))                    # space: False; seed: v >= 0
    RandomSearch(dict(lr=[1, 2])).ask()
    RandomSearch(dict(lr=[1, 2])).tell({}, 1.)       # settings: any; loss: any
    GridSearch(dict(lr=[1, 2]))                      # space: False; seed: v >= 0; points: v >= 2
    tune(sweep_run, dict(a=dict(lr=1)), dict(lr=[1, 2]), 2, path='sweep')
        # run: callable(v); variants: False; space: False; trials: v >= 1; key: False
        # seeds: v == [None]; sampler: False; seed: v >= 0
    tuned().loss_of(dict(losses=[1.]))               # trial: False
    tuned().of('a')                                  # name: False
    tuned().edges('a')                               # name: False
    tuned(6).explained('a')                          # name: False
    tuned().evaluate([0])                            # seeds: v == [None]
    tuned().plot()                                   # axes: False
    halve(staged, dict(a=dict(lr=1)), dict(lr=[1, 2]), 2, budgets=(1, 2), path='halved')
        # run: callable(v); variants: False; space: False; trials: v >= 1; budgets: False
        # keep: 0 < v < 1; key: False; seeds: v == [None]; sampler: False; seed: v >= 0
    OptunaSearch(dict(lr=[1, 2]))
        # space: False; seed: v >= 0; make: callable(v); batch: v >= 1
''',
budgets='''
    match_budgets(dict(a=cfg()), 'tokens', 'a', steps=1, B=1)
        # variants: False; by: False; like: False; steps: v >= 1; B: v >= 1; seconds: False
    step_seconds(cfg(), 1, 4, repeat=1)              # cfg: False; repeat: v >= 1
    match_budgets(dict(a=cfg()), 'tokens', 'a').ratios('a') # name: False
    named_init(model())                              # init: callable(v)
    trunk(lambda seed, folder: run(dir=folder), 0, 'trunks', at=1, steps=2)
        # make: False; at: v == 1; steps: v >= 2; seed: any
    tail_mean(Runs(records()), 'bpb', 1)             # runs: False; key: False; n: v >= 1
    control_variate(Runs(records()), 'bpb', 'a')
        # runs: False; key: False; vs: False; alpha: 0 < v < 1; correct: False
    variance_saved(Runs(three_records()), 'bpb', 'a')
        # runs: False; key: False; vs: False; tail: v >= 1
    speedup_table(Runs(three_records()), 'bpb', 'a', ladder())
        # runs: False; key: False; vs: False; ladder: False; compute: v == {}; alpha: 0 < v < 1
    log_speedup(np.array([.5, 1, 2]), np.array([[3, 2, 1.5]]*3), np.zeros(3))
        # budgets: False; losses: False; d: False; alpha: 0 < v < 1
''',
autoconfig='''
    dial_width(2, 64, 64)
    house_dial(1, 64, 16)
    lab_dial(1, 64, 16, mlp=MLP)                     # mlp: callable(v)
    nanochat_dial(1, 64, 16)
    law_counts(cfg())                                # cfg: False
    vocab_law(10**6, 256)                            # n: v > 0; special: v >= 0
    depth_plan(1, house_rule, 64, 16, steps=1)
        # rule: False; steps: v > 0; seconds: any; flops: v > 0; tokens: v > 0; ratio: v > 0
        # speed: any
        # batch: v in (10**9,); rows: v == 1; devices: v == 1; depth: 1 <= v < 9
    a_plan().config()
    a_plan().groups()
    a_plan().optimizer(model())                      # model: False
    a_plan().compare(fitted())                       # run: False; expected: False
    hlb_scale(1.)                                    # scale: v >= .1
    step_work(cfg(), 1)                              # cfg: False; accumulate: v >= 1; rows: v >= 1
    a_speed().step(a_work())                         # work: False
    a_speed().rows()
    fit_speed([dict(calls=1., seconds=1.)])          # points: False; device: any
    time_steps(cfg(), [adamw()], 1, .01, 'cpu')      # cfg: False; groups: False; clock: False
        # seconds: 0 < v < 2; rows: v == 1; accumulate: v == 1
    calibrate(seconds=.01, vocab_size=64, context_length=8, shapes=[(1, 1)], device='cpu')
        # rule: False; seconds: 0 < v < 2; shapes: False; clock: False; vocab_size: v < 99
        # context_length: v < 99
    auto_plan(1, tok=64, context_length=16, speed=a_speed())
        # minutes: v > 0; like: False; rule: False; tok: 1 <= v < 10**6; speed: any; depth: v < 9
        # context_length: v < 99; devices: v == 1
    parse_size('124M')                               # size: v > 0 if type(v) is not str else False
''',
scaling='''
    best_split(lambda N, D: N + D, 1e9)              # law: any; flops: v > 0
        # low: v is None or 0 < v < 1e7; high: v is None or v > 13
    fit_law(some_runs(), draws=2)
        # runs: False; form: False; starts: any; loss: False; draws: v >= 1; seed: any
    a_law()(C=1e9)                                   # C: any
    a_law().interval(C=1e9)                          # C: any; level: 0 < v < 1
    write_prediction('ledger.json', 'mine', 1., 0., 2.)
        # path: any; value: 0 <= v <= 2; low: v <= 1; high: v >= 1; about: True
    write_outcome(a_ledger(), 'a', 1.)               # path: False; name: False; outcome: True
    read_predictions(a_ledger())                          # path: True
    best_rate([.1, .2, .4], [1., .5, 1.])            # rates: False; losses: False
    rate_drift([dict(width=w, rate=r, loss=r) for w in (1, 2) for r in (.1, .2, .4)]) # runs: False
    mean_losses([dict(rate=.1, loss=1.)])            # runs: any
''',
cli='''
    command('train', text=file('a.txt', LONG), steps='1', vocab='260', layers='1', width='32')
        # text: False; steps: v == '1000000000'; dir: True; device: v == ''; layers: False;
        # width: False; seconds: False
    command('chat', dir=saved(), n='3')
        # which: v == '-1'; dir: False; user: v == ''; reply: v == ''; remote: v == ''
        # model: v == ''
        # key: v == ''; system: True; temp: v in ('0', '1.5', '1000000000')
        # k: v == '1000000000'; n: v == '1000000000'; device: False
    command('sample', dir=saved(), n='3')
        # prompt: True; dir: False; which: v == '-1'; k: v == '1000000000'; device: False;
        # temp: v in ('0', '1.5', '1000000000'); n: v in ('0', '1000000000')
    command('runs', dir=folder('runs'))
    command('runs compare', a='a', b='a', dir=run_folder()) # a: False; b: False; dir: False
    command('runs rename', run='a', name='b', dir=run_folder()) # run: False; dir: False
    command('runs delete', run='a', dir=run_folder()) # run: False; dir: False
    command('tokenizer train', text=file('a.txt', LONG), vocab='260')
        # text: False; pattern: v == 'x'; out: v != ''; vocab: v == '1000000000'
    command('tokenizer show', tok='bytes', text='a text') # tok: False
    command('tokenizer compare', toks='bytes', text=file('a.txt')) # toks: False; text: v == ''
''')


# ---- objects for the calls, small ones

def namespace():
    "What the calls may use: all of gptlab, and the makers of small objects below"
    found = {}
    for name in (*CALLS, 'all'): found |= vars(importlib.import_module(f'gptlab.{name}'))
    found |= {k: v for k, v in globals().items() if k in MAKERS}
    return found | dict(io=io, np=np, LONG='A line of a text, and more. \n'*300)

MAKERS = set('''docs tok bpe cfg model opt ids tokens stream fixed batch run fitted saved folder
    file dataset shard_file qkv seq id_rows parameter checkpoint records token_folder ranks
    tokenizer_json pieces server docs_corpus moe hub_config hub_folder llama llama_cfg lora
    average saved_average run_folder command kept kept_opt hf sp probed made made_study
    three_records items task question task_file core_tasks sgd_maker a_plan a_speed some_runs
    a_law a_ledger ladder sweep_run tuned free_opt kept_parameter squares estimated talk_of_two
    a_chat read_caches staged a_work crossed_records'''.split())

def lab():
    import gptlab.all
    return gptlab.all

def a_plan(): return lab().depth_plan(1, vocab_size=64, context_length=16, batch=32, steps=1)

def a_speed():
    kinds = 'calls', 'operations', 'bytes', 'parameters', 'products'
    return lab().Speed(dict.fromkeys(kinds, 1e-9), [], 'cpu')

def a_work(): return dict.fromkeys(a_speed().seconds, 1.)
def some_runs(): return [dict(C=10.**k, loss=1 + 10./k) for k in range(6, 12)]
def a_law(): return lab().fit_law(some_runs(), draws=2)

def some_runs(): return [dict(C=10.**k, loss=1 + 10./k) for k in range(6, 12)]
def a_law(): return lab().fit_law(some_runs(), draws=2)

def a_ledger():
    path = file('ledger.json', '{}')
    lab().write_prediction(path, 'a', 1., 0., 2.)
    return path

def items(): return [dict(query='a', choices=['b', 'c'], gold=0)]*3
def task(): return lab().Task(items())
def question(): return lab().make_question(task(), items(), 0, tok())

def task_file():
    return file('t.jsonl', '{"query": "a", "choices": ["b", "c"], "gold": 0}\n')

def core_tasks():
    task_file()
    return [lab().CoreTask('t', 't.jsonl', lab().MULTIPLE_CHOICE, 0, .5, '')]

def sgd_maker(model):
    import torch
    return torch.optim.SGD(model.parameters(), .1)

def talk_of_two(): return [dict(role='user', content='a'), dict(role='assistant', content='b')]
def a_chat():
    chat = lab().Chat(model(), tok(), lab().plain_roles('U', 'A', after=' '), n=3, say=str)
    chat.messages = talk_of_two()
    return chat

def docs(): return [f'Once upon a time, {i} cats sat on the mat. ' for i in range(20)]
def docs_corpus(): return lab().corpus(docs())
def read_caches():
    "The caches of two rows of three tokens"
    made, caches = model(), model().new_caches()
    made(lab().torch.zeros(2, 3, dtype=lab().torch.long), caches=caches)
    return caches
def tok(): return lab().ByteTokenizer()
def bpe(): return lab().BPE.train(docs(), 264)
def ids(): return lab().tokenize(docs(), tok()).ids
def tokens(): return lab().tokenize(docs(), tok())
def stream(): return lab().Batches(tokens(), B=2, T=8)
def fixed(): return lab().fixed_batches(tokens(), B=2, T=8, rows=2)
def batch(): return next(stream())
def id_rows(): return lab().torch.ones(1, 3, dtype=lab().torch.long)
def seq(): return lab().Seq(id_rows())
def qkv(): return lab().torch.randn(1, 2, 3, 4)
def parameter(): return lab().nn.Parameter(lab().torch.ones(2, 2))

def cfg(**kw):
    sizes = dict(vocab_size=257, context_length=16, n_layers=1, n_heads=2, d_model=16, d_ff=16)
    return lab().GPTConfig(**sizes | kw)

def model(**kw): return lab().GPT(cfg(**kw))
def opt(): return lab().Opt(model(), lab().adamw())
def kept(made=[]):
    "One model for the whole process"
    if not made: made.append(model())
    return made[0]

def free_opt(): return lab().Opt(model(), lab().schedule_free())
def kept_parameter(made=[]):
    if not made: made.append(parameter())
    return made[0]

def squares(): return (kept_parameter()**2).sum()

def estimated():
    made = lab().HessianDiagonal()
    made.found = {kept_parameter(): lab().torch.ones(2, 2)}
    return made

def kept_opt(): return lab().Opt(kept(), lab().adamw())
def moe(): return model(mlp=lab().partial(lab().MoE, n_experts=4))

def llama_cfg():
    return lab().llama_config(vocab_size=264, context_length=16, n_layers=1, n_heads=2, d_model=16,
                              d_ff=16)

def llama(): return lab().GPT(llama_cfg())

def lora():
    made = model()
    lab().add_lora(made, r=2)
    return made

def run(**kw):
    made = model()
    kw = dict(callbacks=[], eval_every=0, device='cpu', dir='run') | kw
    return lab().Trainer(made, lab().Opt(made, lab().adamw()), stream(), fixed(), **kw)

def fitted(): return run().fit(2)

def probed():
    made = lab().Activations('*', every=1)
    run(callbacks=[made]).fit(2)
    return made

def saved():
    run(dir='saved', save_every=1).fit(2)
    return 'saved'

def average():
    made = lab().WeightAverage(.9)
    made.update(model())
    return made

def saved_average():
    run(dir='saved', callbacks=[lab().WeightAverage(.9)]).fit(2)
    return 'saved'

def folder(name):
    Path(name).mkdir(exist_ok=True)
    return Path(name)

def file(name, content='A line of a text.\n'):
    data = content if isinstance(content, bytes) else content.encode()
    Path(name).write_bytes(data)
    return str(Path(name).absolute())

def run_folder():
    run(dir='runs/a').fit(1)
    return Path('runs').absolute()

def checkpoint(): return lab().save_checkpoint('step', a=dict(b=1))
def records():
    log = [dict(step=1, bpb=1.)]
    return [dict(variant=v, seed=s, log=log) for v in 'ab' for s in (0, 1)]
def crossed_records():
    return lab().Runs([dict(variant='a', seed=(i, j), log=[dict(bpb=i + j*j)])
                       for i in range(2) for j in range(2)])

def three_records():
    log = [dict(step=1, bpb=1.)]
    return [dict(variant='a', seed=s, log=log) for s in range(3)]

def ladder():
    return lab().Runs([dict(variant=b, seed=s, log=[dict(bpb=1/b)])
                       for b in (.5, 1., 2.) for s in range(3)])

def sweep_run(v, seed): return dict(valid=float(v['lr']))
def staged(v, seed, folder, budget): return sweep_run(v, seed)
def tuned(trials=2):
    space = dict(lr=[*range(1, trials + 1)])
    return lab().tune(sweep_run, dict(a=dict(lr=1)), space, trials, path='tuned', verbose=False)

def made(): return lab().study(lambda v, s: dict(bpb=1.), dict(a=1), [0], path='made')

def made_study(): return made().path

def token_folder(): return lab().write_tokens(docs(), tok(), 'tokens', progress=False)
def dataset():
    import datasets
    return datasets.Dataset.from_dict(dict(text=docs()))

def shard_file():
    return next(lab().reshard(docs(), 'made', docs_per_shard=9, progress=False).glob('*.parquet'))

def ranks(): return {bytes([i]): i for i in range(256)} | {b'ab': 256}

def tokenizer_json():
    return json.loads(bpe().to_tokenizer_json('tokenizer.json').read_text(encoding='utf-8'))

def hf(): return lab().HFTokenizer(tokenizer_json())
def sp(): return lab().SentencePieceTokenizer(pieces())

def pieces():
    import sentencepiece
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(docs()), model_writer=made,
                                             vocab_size=30, minloglevel=9)
    return made.getvalue()

def hub_folder():
    with contextlib.redirect_stdout(None): return lab().save(llama(), bpe(), 'hub')

def hub_config(): return json.loads((hub_folder()/'config.json').read_text())

def server(name):
    "The address of a folder that a thread serves: it holds a.txt and one shard"
    shutil.copy(file('a.txt'), folder('www')/'a.txt')
    for i in range(2): shutil.copy(shard_file(), f'www/shard_{i:05}.parquet')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass

    made = http.server.ThreadingHTTPServer(('127.0.0.1', 0),
                                           functools.partial(Quiet, directory='www'))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{made.server_address[1]}/{name}'

def command(command_name, **options):
    "One command of the command line; what it raises is not yet made one line on stderr"
    from gptlab import cli
    cli._show_any_character()                                      # as main does
    bare = POSITIONAL.get(command_name, ())
    argv = [w for k, v in options.items() if k not in bare for w in (f'--{k}', str(v))]
    argv += [str(options[k]) for k in bare]
    return cli.COMMANDS[command_name](**vars(cli._parser(command_name).parse_args(argv)))

POSITIONAL = {'runs compare': ('a', 'b'), 'runs rename': ('run', 'name'), 'runs delete': ('run',),
              'tokenizer show': ('tok', 'text'), 'tokenizer compare': ('toks',)}
