"""The pictures of what a study measured beside its mean validation loss, with their words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from scaling_jax.report import figures

if TYPE_CHECKING:
    from scaling_jax.report.beside import Beside

_Attempt = tuple[str, str, Callable[[], tuple[str, Figure]]]


def pictures_beside(beside: Beside, colours: figures.SizeColours | None) -> list[_Attempt]:
    """Stem, title and what draws each of them, in the order of the page."""
    attempts: list[_Attempt] = []
    if (positions := beside.positions) is not None:
        attempts += [
            (
                "loss_by_position",
                "Loss along the context",
                lambda: (
                    "Dots are means over eighths of an octave, lines the fitted a + b / T^c from "
                    "the second position on. All runs read the same documents, so that their dots "
                    "scatter together. A larger model should fall further, and faster.",
                    figures.loss_by_position(positions, colours),
                ),
            ),
            (
                "position_over_training",
                "Positions over training",
                lambda: (
                    "One run of the largest size. Lines of early positions should flatten first: "
                    "what a short context tells is learned before what only a long one does.",
                    figures.position_over_training(positions),
                ),
            ),
            (
                "position_against_size",
                "Positions against the size of the model",
                lambda: (
                    "The best run of each size. With a single token to go by, a larger model "
                    "should gain little; later positions should gain more.",
                    figures.loss_against_size(positions),
                ),
            ),
        ]
    if (transfer := beside.transfer) is not None and any(each.line for each in transfer.corpora):
        attempts.append(
            (
                "transfer",
                "Transfer to other corpora",
                lambda: (
                    "Left, lines that run side by side mean that a larger model gains alike "
                    "everywhere. Right, where runs during training and at their ends lie on one "
                    "curve, the loss on another corpus follows from that on the training one, "
                    "whatever the size and the length of training.",
                    figures.transfer_corpora(transfer),
                ),
            )
        )
    return attempts
