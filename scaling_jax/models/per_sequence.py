"""Operations with parameters that can tell each row's squared gradient norm on the way back.

A probe, `probe_b`, is float32 zeros with one number a row. It changes no result; in the backward
pass its cotangent is the squared norm of each row's part of the gradient of the operation's
parameters, taken where that gradient is made. Cotangents add, so that one probe handed to many
operations collects the sum over all their parameters. Where the loss is a mean over B rows, B^2
times the cotangent is the squared norm of a row's own gradient (Gray et al. 2024).

Norms are summed in float32, whatever the operation computes in.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)


def linear(x: jax.Array, weights: jax.Array, probe_b: jax.Array | None = None) -> jax.Array:
    """`x @ weights` as one product of two matrices, whose gradients are such products too.

    XLA copies the arrays of a product with more axes before it multiplies on a CPU.
    """
    if probe_b is not None:
        return _probed_linear(x, weights, probe_b)
    flat = x.reshape(-1, x.shape[-1]) @ weights
    return flat.reshape(*x.shape[:-1], weights.shape[-1])


@jax.custom_vjp
def _probed_linear(x_btd: jax.Array, weights_de: jax.Array, probe_b: jax.Array) -> jax.Array:
    return linear(x_btd, weights_de)


def _linear_backward(
    seen: tuple[jax.Array, jax.Array], dy_bte: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_btd, weights_de = seen
    dweights_de, sq_b = _matrix_gradient(x_btd, dy_bte)
    return _input_gradient(x_btd, weights_de, dy_bte), dweights_de, sq_b


_probed_linear.defvjp(lambda x, weights, _: (linear(x, weights), (x, weights)), _linear_backward)


def _input_gradient(x_btd: jax.Array, weights_de: jax.Array, dy_bte: jax.Array) -> jax.Array:
    # As JAX itself does it. With the transpose written out, the devices of `fsdp` would gather the
    # weights a second time.
    (dx_btd,) = jax.linear_transpose(lambda x_btd: linear(x_btd, weights_de), x_btd)(dy_bte)
    return dx_btd


def _matrix_gradient(x_btd: jax.Array, dy_bte: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient of `matrix` in `y = x @ matrix`, and the squared norms of its rows' parts.

    The parts themselves cost t d e a row, and their sum is the gradient. Where t (d + e) is less,
    the products of positions cost so much. Either needs at most the numbers that `x` and `dy` have:
    d e of a part are fewer than t (d + e), or else t is less than both d and e.
    """
    (t, d), e = x_btd.shape[1:], dy_bte.shape[2]
    if d * e < t * (d + e):
        parts_bde = _einsum("btd,bte->bde", x_btd, dy_bte)
        return parts_bde.sum(0).astype(x_btd.dtype), jnp.square(parts_bde).sum((1, 2))
    x_bts = _einsum("btd,bsd->bts", x_btd, x_btd)
    products_bts = x_bts * _einsum("bte,bse->bts", dy_bte, dy_bte)
    return x_btd.reshape(-1, d).T @ dy_bte.reshape(-1, e), products_bts.sum((1, 2))


def affine(
    x_btd: jax.Array, gain_d: jax.Array, bias_d: jax.Array, probe_b: jax.Array | None = None
) -> jax.Array:
    """`x * gain + bias`, a gain and a bias a feature."""
    if probe_b is not None:
        return _probed_affine(x_btd, gain_d, bias_d, probe_b)
    return x_btd * gain_d[None, None, :] + bias_d[None, None, :]


@jax.custom_vjp
def _probed_affine(
    x_btd: jax.Array, gain_d: jax.Array, bias_d: jax.Array, probe_b: jax.Array
) -> jax.Array:
    return affine(x_btd, gain_d, bias_d)


def _affine_backward(
    seen: tuple[jax.Array, jax.Array], dy_btd: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x_btd, gain_d = seen
    gains_bd = (x_btd.astype(jnp.float32) * dy_btd.astype(jnp.float32)).sum(1)
    biases_bd = dy_btd.astype(jnp.float32).sum(1)
    sq_b = (jnp.square(gains_bd) + jnp.square(biases_bd)).sum(1)
    gain, bias = (parts_bd.sum(0).astype(gain_d.dtype) for parts_bd in (gains_bd, biases_bd))
    return dy_btd * gain_d[None, None, :], gain, bias, sq_b


_probed_affine.defvjp(lambda x, gain, bias, _: (affine(x, gain, bias), (x, gain)), _affine_backward)


@jax.custom_vjp
def watch_tables(x_btd: jax.Array, tokens_bt: jax.Array, probe_b: jax.Array) -> jax.Array:
    """Gives back `x = table[tokens] + position[:t]`; the probe tells of both tables."""
    return x_btd


def _tables_backward(tokens_bt: jax.Array, dx_btd: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    return dx_btd, None, _tables_sq_norm(tokens_bt, dx_btd)


watch_tables.defvjp(lambda x, tokens, _: (x, tokens), _tables_backward)


def _tables_sq_norm(tokens_bt: jax.Array, dx_btd: jax.Array) -> jax.Array:
    # A token that comes several times in a row has one gradient, the sum of theirs; every position
    # has its own. The products need as much memory as the scores of one head of attention.
    same_bts = tokens_bt[:, :, None] == tokens_bt[:, None, :]
    products_bts = _einsum("btd,bsd->bts", dx_btd, dx_btd)
    lookup_b = jnp.where(same_bts, products_bts, 0.0).sum((1, 2))
    return lookup_b + jnp.square(dx_btd.astype(jnp.float32)).sum((1, 2))


@jax.custom_vjp
def watch_tied_tables(
    x_btd: jax.Array, tokens_bt: jax.Array, probe_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `watch_tables`, of a table that makes the logits too; with zeros for `tied_head`.

    The squared norm of the sum of both uses is that of each and twice their inner product. The
    cotangent of the zeros brings from the logits what that product needs.
    """
    return x_btd, jnp.zeros(x_btd.shape, jnp.float32)


def _tied_tables_backward(
    tokens_bt: jax.Array, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None, jax.Array]:
    dx_btd, of_head_btd = cotangents
    both_b = (dx_btd.astype(jnp.float32) * of_head_btd).sum((1, 2))
    return dx_btd, None, _tables_sq_norm(tokens_bt, dx_btd) + 2.0 * both_b


watch_tied_tables.defvjp(
    lambda x, tokens, probe_b: (watch_tied_tables(x, tokens, probe_b), tokens),
    _tied_tables_backward,
)


@jax.custom_vjp
def tied_head(
    x_btd: jax.Array,
    weights_dv: jax.Array,
    tokens_bt: jax.Array,
    zeros_btd: jax.Array,
    probe_b: jax.Array,
) -> jax.Array:
    """`linear(x, weights)` for the transposed table, which was read at `tokens_bt`.

    `zeros_btd` are those of `watch_tied_tables`.
    """
    return linear(x_btd, weights_dv)


def _tied_head_backward(
    seen: tuple[jax.Array, jax.Array, jax.Array], dy_btv: jax.Array
) -> tuple[jax.Array, jax.Array, None, jax.Array, jax.Array]:
    x_btd, weights_dv, tokens_bt = seen
    dweights_dv, sq_b = _matrix_gradient(x_btd, dy_btv)
    # For each token that was read, what the logits add to the gradient of its row of the table.
    dy_bst = jnp.take_along_axis(dy_btv, tokens_bt[:, None, :], axis=2)
    of_head_btd = _einsum("bst,bsd->btd", dy_bst, x_btd)
    return _input_gradient(x_btd, weights_dv, dy_btv), dweights_dv, None, of_head_btd, sq_b


tied_head.defvjp(
    lambda x, weights, tokens, *_: (linear(x, weights), (x, weights, tokens)), _tied_head_backward
)
