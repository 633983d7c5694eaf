"""The columns of the tables, with their types and units: the only door between the wings.

A *run* is one row of `runs`. A *window* is one row of `curves`: means over the updates
`step_start + 1 .. step`, and an evaluation after `step` updates where `val_loss` is not null.
A *side table* holds what a window has many of, in long format: `noise` one row a window, source,
metric and part, `evaluations` one a corpus, `positions` one a position of the context. `step`,
`tokens` and `flops` count from 0 at initialisation; losses are nats a token.
"""

from __future__ import annotations

FORMAT = 2

ENDINGS = (
    "interrupted",  # when asked, and goes on later
    "stopped",  # early, for good
    "done",
    "diverged",
    "failed",
)
STATUSES = (
    "queued",  # not started
    "running",
    "stale",  # says running, and no process is heard of that trains it
    *ENDINGS,
)
UNDER_WAY = ("running", "stale", "interrupted")

# Parts of a run's config that say where and how it is computed, and not what it is.
PLACEMENT = frozenset({"mesh", "engine", "checkpoint"})
# Parts of its data's config that the fingerprint of the corpus stands for.
READ_FROM = ("source", "text_field", "tokenizer", "split_on")

RUN_COLUMNS: dict[str, type] = {
    "run_id": str,
    "study": str,
    "name": str,  # the run's name in its study
    "status": str,  # one of STATUSES
    "seed": int,
    "data_seed": int,
    "arch": str,
    "n_layer": int,
    "d_model": int,
    "d_ff": int,
    "n_head": int,
    "n_ctx": int,
    "n_vocab": int,
    "activation": str,
    "tied_embeddings": bool,
    "dropout": float,
    "document_mask": bool,  # no token attends to what stands before its own document
    "params_non_embedding": int,  # Kaplan eq. 2.1: the matrices of the blocks
    "params_embedding": int,  # token and position tables
    "params_head": int,  # 0 where tied
    "params_other": int,  # LayerNorm gains and biases
    "params_total": int,  # every array of the model
    "flops_per_token_blocks": int,  # forward FLOPs of the blocks' matrices
    "flops_per_token_attention": int,  # forward, scores and values over the full square
    "flops_per_token_head": int,  # forward, logits
    "flops_per_token_embedding": int,  # forward, Kaplan Table 1; lookups, no matmul
    "data_source": str,
    "data_fingerprint": str,
    "data_order": str,  # random, epochs, or documents
    "tokenizer": str,  # its kind and the corpus's vocabulary, the separator among it
    "unique_tokens": int,  # tokens of the training split that the run draws from
    "subset_seed": int,  # draws which, where these are not all
    "evaluation_corpora": str,  # names with commas, beside the splits; null: none
    "bigram_nats": float,  # validation loss of a bigram model of the training split
    "batch_tokens": int,  # at first, where the batch changes: the curve has it row by row
    "batch_sequences": int,  # likewise
    "microbatches": int,  # likewise
    "batch_policy": str,  # fixed, or how the batch changes
    "steps": int,
    "parent": str,  # run_id of the run that this one branches from; null for most
    "branch_step": int,  # the step that it begins at then, its first in the curve
    "optimizer": str,
    "lr_peak": float,
    "beta1": float,
    "beta2": float,
    "momentum": float,
    "weight_decay": float,
    "grad_clip": float,  # null: none
    "schedule": str,
    "warmup_steps": int,
    "final_fraction": float,
    "decay_fraction": float,
    "matmul_precision": str,
    "compute_dtype": str,
    "versions": str,
    "device": str,
    "mesh": str,
    "engine": str,
    "tries": int,  # attempts up to now
    "failures": int,  # of these, the ones that failed
    "heartbeat": float,  # when its process last wrote, seconds since 1970
    "message": str,  # why it ended, where it is not done
    "best_step": int,  # of the lowest validation loss, where these three are read off
    "best_val_loss": float,
    "best_test_loss": float,  # an early-stopped result: not chosen by itself
}

CURVE_COLUMNS: dict[str, type] = {
    "run_id": str,
    "attempt": int,  # 1 for the first start of the run
    "step_start": int,
    "step": int,
    "tokens": int,  # seen after `step` updates
    "epochs": float,  # tokens / unique_tokens; in an order, windows / windows of an epoch
    "lr": float,  # mean over the window
    "lr_sum": float,  # sum over all updates up to `step`
    "batch_tokens": int,
    "train_loss": float,  # mean over the window
    "val_loss": float,
    "val_loss_se": float,  # clustered by document; so of each other corpus, loss_test for one
    "grad_sq_small": float,  # mean over the window of the mean over groups of |g_k|^2
    "grad_sq_big": float,  # mean over the window of |mean_k g_k|^2
    "grad_sq_small_sq": float,  # mean over the window of the square of a step's grad_sq_small
    "grad_sq_big_sq": float,  # likewise
    "grad_sq_small_big": float,  # likewise, their product
    "noise_steps": int,  # updates that went into the five columns before
    "batch_small": int,  # tokens a group
    "batch_big": int,  # tokens a batch
    "flops_6n": float,  # 6 params_non_embedding tokens
    "flops_exact": float,  # 3 x forward, matmuls with head and attention over the full square
    "tokens_per_s": float,
    "wall_s": float,  # since the start of this attempt
}

# Groups of rows drawn apart from training, at the parameters of one step: `step_start` is `step`.
AT_CHECKPOINT = "checkpoint"

NOISE_COLUMNS: dict[str, type] = {
    "run_id": str,
    "attempt": int,
    "step_start": int,
    "step": int,
    "source": str,  # groups (of the batch's rows), sequences, or AT_CHECKPOINT
    "metric": str,  # |g|^2 is g^T P g: euclidean, adam, hessian or gauss_newton
    "part": str,  # total, or one kind of parameters
    "grad_sq_small": float,  # these five are those of the curve, under the metric
    "grad_sq_big": float,
    "grad_sq_small_sq": float,
    "grad_sq_big_sq": float,
    "grad_sq_small_big": float,
    "noise_steps": int,  # updates that went into the five columns before
    "batch_small": int,  # tokens a group, or a sequence
    "batch_big": int,  # tokens a batch
}

VALIDATION, TEST = "validation", "test"

EVALUATION_COLUMNS: dict[str, type] = {
    "run_id": str,
    "attempt": int,
    "step_start": int,
    "step": int,
    "corpus": str,  # VALIDATION, TEST, or the name of a further one
    "loss": float,  # mean over its tokens, of whatever document
    "loss_se": float,  # clustered by document
    "tokens": int,  # targets that the mean is over
    "bits_per_byte": float,  # null where it is not known of how many bytes a token is
}

POSITION_COLUMNS: dict[str, type] = {
    "run_id": str,
    "attempt": int,
    "step_start": int,
    "step": int,
    "corpus": str,  # VALIDATION
    "position_start": int,  # the row is a mean over the targets from here ...
    "position": int,  # ... to here: target T is predicted from T tokens of context
    "loss": float,  # averages, weighted by `tokens`, to that of `evaluations`
    "tokens": int,
}

# A window's rows of a side table lie in its row of the curve, under the name of the table.
SIDE_TABLES: dict[str, dict[str, type]] = {
    "noise": NOISE_COLUMNS,
    "evaluations": EVALUATION_COLUMNS,
    "positions": POSITION_COLUMNS,
}
# A window with a validation loss has rows in each of these.
OF_EVALUATIONS = ("evaluations", "positions")
# What tells the rows of a window apart.
SIDE_KEYS: dict[str, tuple[str, ...]] = {
    "noise": ("source", "metric", "part"),
    "evaluations": ("corpus",),
    "positions": ("corpus", "position"),
}
