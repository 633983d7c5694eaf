"""Loss on distributions like that of the training corpus is a line in the loss on it.

Claim     whatever the size of a model and wherever in its training, its loss on another corpus
          depends on its loss on the training distribution alone (Kaplan et al. 2020, §3.2.2, fig.
          8), and its loss falls with the position in the context (D.5, fig. 20)
Expect    of models this small the first holds for English prose and verse alone: one line within
          2 % of the loss on the test split, Wikipedia, legal texts, poetry and Shakespeare, slopes
          .76 to 1.05 (BPE) and .79 to 1.08 (bytes); on French, German, code and TeX the loss hardly
          falls, or rises, as the model learns English, slopes -.7 to .3. In bytes the loss falls
          over the first five to ten positions and no further
Data      a folder `books` beside you, with main.jsonl.xz and the eight transfer_*.jsonl.xz, one
          {"id", "text"} a line; ids of chapters end in #0001, so that books stay in one split
Cost      6 to 12 minutes on two CPU cores, and 2 to 4 to tokenize
Run       scaling-jax run experiments/books.py
          scaling-jax transfer runs/books

In bytes, into a folder of its own:
          --set data.tokenizer.name=bytes --set data.tokenizer.n_vocab=null --set model.n_vocab=257
To see the loss at each position, which takes more tokens of evaluation, and no other corpora:
          --set evaluation.tokens=1000000 --set evaluation.per_decade=1 --set evaluation.corpora={}
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
