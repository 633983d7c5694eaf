"""Loss on other distributions is a line in the loss on the books that a model was trained on.

Claim     whatever the size of a model and wherever in its training, its loss on another corpus
          depends on its loss on the training distribution alone (Kaplan et al. 2020, §3.2.2, fig.
          8), and its loss falls with the position in the context (D.5, fig. 20)
Expect    for most of the eight corpora, one line for models at the end and during training, rms
          residual below 2 % of the loss; loss at position 64 below that at 2 in every model
Data      a folder `books` beside you, with main.jsonl.xz and the eight transfer_*.jsonl.xz, one
          {"id", "text"} a line; ids of chapters end in #0001, so that books stay in one split
Cost      12 minutes on two CPU cores, and 1 to tokenize
Run       scaling-jax run experiments/books.py
          scaling-jax transfer runs/books
          scaling-jax positions runs/books

In bytes, which take 4 minutes: --set data.tokenizer.name=bytes --set data.tokenizer.n_vocab=null
--set model.n_vocab=257 --out runs/bytes
"""

from scaling_jax.config import (
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
)
from scaling_jax.study import Study

OTHERS = (
    "wikipedia",
    "legal",
    "math_tex",
    "code_docs",
    "poetry",
    "shakespeare",
    "french",
    "german",
)
RATES = {12: 1.5e-2, 24: 1e-2, 48: 5e-3, 72: 3e-3}  # d_model: lr_peak


def run(d_model: int) -> RunConfig:
    """Two layers, 16 sequences of 128 tokens an update, one epoch of a small part of the books."""
    return RunConfig(
        model=ModelConfig(
            n_layer=2, d_model=d_model, n_head=max(1, d_model // 24), n_ctx=128, n_vocab=1024
        ),
        data=DataConfig(
            source="books/main.jsonl.xz",
            tokenizer=TokenizerConfig(name="bpe", n_vocab=1024),
            split_on="#",
            order="epochs",
        ),
        batch=BatchConfig(sequences=16),
        optimizer=OptimizerConfig(lr_peak=RATES[d_model], beta2=0.99, grad_clip=1.0),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100),
        evaluation=EvaluationConfig(
            tokens=32_768,
            per_decade=6,
            corpora={name: f"books/transfer_{name}.jsonl.xz" for name in OTHERS},
        ),
        steps=2_000,
    )


study = Study("books", {f"d{d_model}": run(d_model) for d_model in RATES}, laws=("l_n",))
