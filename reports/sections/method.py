"""What the words and columns of a report mean."""

from __future__ import annotations

from reports.statistics.analysis import Analysis
from reports.tables import Section

_METHOD_HERE = (
    "Seeds are blocks: the conditions of one seed share initialisation, data order and dropout draws, so "
    "that differences are taken within a seed. Whether the ± of two conditions overlap says nothing.",
    "Expert usage CV is the population sd / mean of the experts' token counts, summed over layers.",
    "Aux loss is the load-balancing loss as added to the training loss, 0 where its weight is 0; the "
    "unweighted one stands under training stability.",
    "The test split is scored in the final pass and stored sealed; it is read only after python cli.py test.",
)
_METHOD_ELSEWHERE = (
    "Seeds are blocks: differences are taken within a seed. What else the runs of one seed shared is not "
    "recorded here. Whether the ± of two conditions overlap says nothing.",
    "Expert usage CV, loss and perplexity are as their authors defined and rounded them.",
)


def method(analysis: Analysis) -> Section:
    """What the words and columns mean."""
    study, std = analysis.study, analysis.std
    divisor = {"sample": "n - 1 (ddof 1)", "population": "n (ddof 0)"}[std]
    return Section(
        "Method",
        notes=(
            f"± is the {std} standard deviation over seeds, divisor {divisor}; --std chooses. The population "
            "form understates the spread of few seeds and is there to reproduce published tables.",
            *(_METHOD_ELSEWHERE if study.imported_from is not None else _METHOD_HERE),
            "Perplexity is the exponential of the loss; bits per byte compares across tokenizers, the loss "
            "does not. A mean perplexity is the mean of the runs' perplexities.",
            "Best Val PPL is the lowest of a run's evaluations on the same held-out text: biased low, the "
            "more so the more evaluations there are. The final loss is primary.",
        ),
    )
