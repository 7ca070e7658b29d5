"""Every knob of mla_jax, once, with a comment. Named configs change some of them; nothing else declares a default.

    python -m mla_jax.main --config configs/base.py:m --workdir runs/x

A size (xs, s, m, l, xl) is the argument after the colon. 0, "" or "auto" mean "derived": the rule stands in the
comment, and the derived value in the run folder's config.json.
"""

from ml_collections import ConfigDict

# The ladder of both papers (docs/results/parameters.md): 17.5M ... 202.7M parameters at 50,000 embedding rows.
SIZES = {
    "xs": dict(n_layers=6, d_model=256, n_heads=8),
    "s": dict(n_layers=6, d_model=512, n_heads=8),
    "m": dict(n_layers=9, d_model=512, n_heads=8),
    "l": dict(n_layers=12, d_model=768, n_heads=12),
    "xl": dict(n_layers=12, d_model=1024, n_heads=16),
}


def get_config(size: str = "m") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"the size {size!r} is not one of {', '.join(SIZES)}: write e.g. mla_rope:m")
    c = ConfigDict()
    c.init_from = ""  # run folder whose weights (not optimizer, not step) this run starts from; "" = random

    c.model = m = ConfigDict()
    m.n_layers = SIZES[size]["n_layers"]  # blocks, L
    m.d_model = SIZES[size]["d_model"]  # width of the residual stream, D
    m.n_heads = SIZES[size]["n_heads"]  # attention heads, H
    m.head_dim = 0  # 0 = d_model / n_heads
    m.vocab_size = 0  # embedding rows; 0 = the tokenizer's size; surplus rows are masked in loss and sampling
    m.max_len = 512  # positions a model can hold (position table, KV cache); >= train.seq_len
    m.attention = "mla"  # mha | gqa | mla
    m.n_kv_heads = 0  # gqa only: key/value heads G (1 = MQA); must divide n_heads
    m.latent = "joint"  # mla only: joint (DeepSeek: one c_kv for all heads) | per_head (paper A)
    m.kv_lora_rank = 0  # mla only: C; 0 = d_model/2 (joint), head_dim/2 (per_head, for K and V each)
    m.q_lora_rank = 0  # joint mla only: latent width of the queries; 0 = queries are not compressed
    m.qk_nope_head_dim = 0  # mla only: unrotated part of q and k; 0 = head_dim
    m.qk_rope_head_dim = 0  # mla, decoupled RoPE only: width of the shared rotary key; 0 = head_dim/2
    m.v_head_dim = 0  # mla only: 0 = head_dim
    m.latent_norm = "auto"  # mla only: rms | none; auto = rms (joint), none (per_head)
    m.position = "rope"  # none | learned (table added to the embeddings) | rope
    m.rope_placement = "decoupled"  # mla with rope: decoupled (own rotary key) | decompressed (rotate expanded k)
    m.rope_theta = 10000.0  # base of the rotary wavelengths
    m.qk_norm = False  # RMS-normalise q and k per head; with mla decode then re-expands k instead of absorbing
    m.block = "default"  # default (RMSNorm, SwiGLU, no biases) | gpt (LayerNorm, tanh-GELU, biases)
    m.ffn = "dense"  # dense | moe
    m.d_ff = 0  # of dense layers; 0 = 8d/3 rounded to 32 (default block), 4d (gpt block)
    m.n_routed_experts = 0  # moe only: experts E of a layer that the router chooses from, e.g. 62
    m.n_shared_experts = 0  # moe only: experts that see every token, computed as one wide feed-forward
    m.top_k = 0  # moe only: routed experts K of a token, e.g. 6
    m.d_expert = 0  # moe only: hidden width F of one expert, shared or routed
    m.first_k_dense = 0  # moe only: leading layers that keep the dense feed-forward
    m.router_score = "sigmoid"  # sigmoid (DeepSeek-V3) | softmax: of the router's logits, in float32
    m.router_renormalize = True  # weights of a token's chosen experts are divided by their sum
    m.routed_scaling_factor = 1.0  # multiplies the weights of routed experts
    m.router_bias_rate = -1.0  # step of the selection bias; 0 = no bias; -1 = 3e-3 (sigmoid), 0.012/E (softmax)
    m.router_bias_rule = "sign"  # sign (DeepSeek-V3) | proportional (to the load's distance from the mean)
    m.router_aux_weight = 0.0  # of the Switch-style balance loss over the batch, e.g. 0.01; 0 = off
    m.router_sequence_weight = 0.0  # of the same loss within each sequence, e.g. 1e-4 (DeepSeek-V3); 0 = off
    m.router_z_weight = 0.0  # of the router z-loss (ST-MoE), e.g. 1e-3; 0 = off
    m.moe_impl = "auto"  # auto (by cost: model/moe_choice.py) | reference | masked_dense | grouped | gathered
    m.grouped_impl = "auto"  # of grouped: auto (pallas on Hopper and later, else xla) | pallas | tokamax | xla
    m.dropout = 0.0  # on embeddings, attention output and feed-forward output
    m.init = "product_matched"  # factored matrices start so that their product has init_std | naive: each has it
    m.init_std = 0.02  # of matrices and embeddings; those that write to the residual stream get it / sqrt(2L)
    m.scan_layers = False  # lax.scan over layers: compiles faster, runs slower on GPUs
    m.dtype = "auto"  # computation: auto (bfloat16 where the device has it) | bfloat16 | float32; params are float32
    m.attention_impl = "auto"  # auto (cuDNN on GPUs from sm80 on) | cudnn | xla
    m.train_impl = "auto"  # norms, GELU, RoPE and loss of training: auto (pallas on GPUs from sm80 on) | pallas | xla
    m.decode_impl = "auto"  # one token over the cache: auto (pallas on GPUs from sm80 on) | pallas | cudnn | xla

    c.data = d = ConfigDict()
    d.path = ""  # a file, folder or Hugging Face data set of stories (docs/how-to/own_data.md); "" = embedded stories
    d.valid_path = ""  # "" = the data set's own validation part, else valid_fraction of the stories by hash of text
    d.valid_fraction = 0.01  # share of the stories of data.path that is held out
    d.text_field = ""  # column or JSON field of the stories; "" = text, story or content, whichever comes first
    d.invalid_utf8 = "refuse"  # refuse | replace (by U+FFFD, counted)
    d.stories = 100_000  # embedded stories: how many to train on
    d.valid_stories = 1000  # embedded stories: how many to hold out
    d.seed = 0  # embedded stories: their seed
    d.document_mask = False  # keep attention and positions inside a story
    d.cache_dir = ""  # tokenizers, tokens, data sets; "" = $MLA_JAX_CACHE, else mla_jax in $XDG_CACHE_HOME or ~/.cache
    d.threads = 2  # reader threads of the input pipeline

    c.tokenizer = t = ConfigDict()
    t.vocab_size = 0  # a ceiling; 0 = 2048 for the embedded stories, 8192 for files; no effect with init_from
    t.path = ""  # an existing sentencepiece model to use instead of training one
    t.train_bytes = 32_000_000  # at most this much of the training part is read to learn the pieces

    c.train = r = ConfigDict()
    r.steps = 2000  # optimizer steps
    r.batch_size = 64  # sequences in an optimizer step
    r.microbatches = 1  # parts a batch is split into; sums and counts are accumulated
    r.remat = "none"  # none | dots (keeps products with weights) | full (keeps each block's input): memory for time
    r.loss_chunks = 1  # parts of seq_len whose logits exist at a time; 1 = whole, 0 = so many that a part is <= 1 GiB
    r.seq_len = 512  # tokens of context in training, T
    r.seed = 0  # weights, dropout and data order
    r.log_every = 10  # steps between rows in metrics.jsonl and lines on the terminal
    r.eval_every = 200  # also evaluates after the last step
    r.on_nonfinite = "stop"  # a non-finite loss or gradient: stop | skip the update | rollback (and skip those batches)
    r.bad_loss = 0.0  # a loss above this (nats per token) counts as non-finite; 0 = none does
    r.bad_grad_norm = 0.0  # the same for the gradient norm before clipping; 0 = none does
    r.tensorboard = True  # also write TensorBoard events
    r.profile_steps = 0  # > 0: write a jax.profiler trace of this many steps after step 20 to the run folder

    c.mesh = x = ConfigDict()  # how the devices of all processes are laid out; their product must divide them
    x.data = 0  # copies of the model, each with its share of the batch; 0 = all the devices that the others leave
    x.fsdp = 1  # also splits the batch, and with it parameters, gradients and optimizer state
    x.expert = 1  # moe only: also splits the batch, and with it the experts
    x.tensor = 1  # splits heads and hidden units

    c.optim = o = ConfigDict()
    o.name = "adamw"  # adamw | muon (hidden matrices; embeddings, norms, biases and the router stay with AdamW)
    o.learning_rate = 1e-3  # peak
    o.warmup_steps = -1  # steps from 0 to the peak, linearly; -1 = 100, or a tenth of decay_steps where that is less
    o.schedule = "cosine"  # cosine | wsd (warm-up, stable, decay: the peak is held, then falls in a straight line)
    o.decay_steps = 0  # step at which the schedule ends; 0 = train.steps
    o.decay_fraction = 0.2  # wsd only: last share of decay_steps, in which the rate falls
    o.final_fraction = 0.1  # of the peak, at the end of the schedule
    o.beta1 = 0.9
    o.beta2 = 0.95
    o.eps = 1e-8  # of AdamW's denominator
    o.weight_decay = 0.1  # matrices only: not norms, biases, embeddings
    o.clip_norm = 1.0  # by global norm; 0 = no clipping
    o.muon_beta = 0.95  # muon only: momentum (Nesterov)
    o.muon_dtype = "auto"  # muon only, of Newton-Schulz: auto (bfloat16 where the device has it) | bfloat16 | float32
    o.adamw_fraction = 1.0  # muon only: AdamW's share of the learning rate, for what Muon does not update
    o.qk_clip = 0.0  # largest attention logit a head may reach before its w_q and w_k shrink, e.g. 100; 0 = no limit
    o.ema_decay = 0.0  # average of the weights, for evaluation, samples and checkpoints, e.g. 0.999; 0 = none

    c.eval = e = ConfigDict()
    e.batch_size = 0  # 0 = train.batch_size

    c.checkpoint = k = ConfigDict()
    k.every = 0  # steps; 0 = train.eval_every
    k.keep_latest = 2  # the newest so many
    k.keep_best = 1  # by validation loss
    k.keep_steps = ()  # never delete these steps, e.g. (100, 500)

    c.sample = s = ConfigDict()
    s.prompts = ()  # () = the tokenizer's separator alone, or the first words of held-out stories after training
    s.num_samples = 3  # per prompt
    s.max_new_tokens = 256  # at most so many after the prompt
    s.temperature = 0.8  # 0 = greedy
    s.top_k = 40  # 0 = all
    s.top_p = 1.0  # then keep the likeliest tokens that hold this share of the probability; 1 = all
    s.min_p = 0.0  # drop tokens below this share of the likeliest one's probability; 0 = none
    s.repetition_penalty = 1.0  # divides positive logits of tokens used before, multiplies negative ones; 1 = none
    s.stop = ()  # a sample ends before the first of these strings, e.g. ("The end",)
    s.seed = 0  # of the first sample; the next draw with seed + 1, + 2, ...
    s.cache_dtype = "auto"  # of the KV cache: auto (that of the computation) | bfloat16 | float32 | int8 (mla only)
    s.prefill_chunk = 1024  # prompts longer than this many tokens are read in such pieces, which bounds memory

    c.judge = j = ConfigDict()
    j.base_url = ""  # OpenAI-compatible endpoint ending in /v1; "" = api.openai.com
    j.model = ""  # the judge, by the endpoint's name
    j.rubric = "paper_a"  # paper_a | paper_b | tinystories
    j.num_prompts = 100  # beginnings that a run completes: held-out first sentences and built-in openings
    j.builtin_prompts = 50  # how many of them are built-in ones (at most 50)
    j.stories_per_prompt = 1  # completions of each beginning, with seeds of their own
    j.max_new_tokens = 256  # length of a sampled story, at most
    j.temperature = 0.8  # of the story model, not of the judge
    j.top_k = 40  # of the story model; 0 = all tokens
    j.seed = 0  # of sampling, of the controls and of what is repeated
    j.num_controls = 40  # held-out stories judged whole and in each damaged form
    j.repeats = 2  # times that a repeated story is judged
    j.repeat_share = 0.1  # share of the stories that is judged `repeats` times
    j.pairwise = False  # also compare every two runs, in both orders
    j.judge_temperature = 0.7  # of the judge; at 0 it repeats itself whatever its scores are worth
    j.max_reply_tokens = 300  # a reply cut there counts as unparsed
    j.concurrency = 8  # requests in flight
    j.timeout_s = 60.0  # of one request, from sending to the last byte
    j.max_retries = 5  # of a request that met a 429, a 5xx or a time-out
    j.give_up_after = 20  # judgements in a row without an answer before the run stops
    j.budget_usd = 5.0  # stop cleanly before spending more than this
    j.price_in = 0.0  # US dollars per million tokens; 0 = unknown: the budget cannot hold
    j.price_out = 0.0  # the same for tokens that the judge writes
    j.yes = False  # do not ask before spending
    j.cache_dir = ""  # replies already paid for; "" = the folder judge beside data.cache_dir's default
    j.resamples = 2000  # bootstrap and permutation resamples in the report

    c.bench = b = ConfigDict()
    b.size = "m"  # of the built-in grid, which is measured when neither --config nor --workdir is given
    b.vocab_size = 8192  # embedding rows of models with random weights
    b.batches = (1, 16, 128, 1024)  # rows that decode together
    b.contexts = (512, 2048, 4096, 16384)  # cache positions; what does not fit is a row that says so
    b.steps = 64  # decode steps in one timed program
    b.repeats = 5  # timed calls; a row has their median and spread
    b.copy_bytes = 2**30  # size of the buffer whose copying gives the bandwidth
    b.memory_context = 4096  # of the suite memory: how many rows of it fit
    b.train_batch = 128  # sequences, of the suite train; their length is the first of contexts
    b.peer_batches = (1, 128)  # of the suite peers
    b.peer_prompt = 256  # tokens of a prompt there
    b.peer_new = 256  # tokens generated there
    b.max_minutes = 0.0  # no measurement starts later; 0 = no limit
    return c
