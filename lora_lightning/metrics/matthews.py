"""Matthews' correlation coefficient, with the usual value where it is not defined."""

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class MatthewsCorrelation(MulticlassConfusionMatrix):
    """Correlation of truth and prediction for two or more classes: the R_K statistic, in [-1, 1].

    A constant prediction correlates with nothing and scores 0, as in scikit-learn and GLUE's own scoring;
    torchmetrics' own metric gives two classes another number there.

    Source: Gorodkin 2004, doi 10.1016/j.compbiolchem.2004.09.006, equation 8.
    """

    def compute(self) -> Tensor:
        """The coefficient of all rows, a float32 scalar."""
        counts = super().compute()
        confusion = counts.cpu().double()  # products of counts lose digits in float32
        truth, predicted, rows = confusion.sum(dim=1), confusion.sum(dim=0), confusion.sum()
        covariance = confusion.trace() * rows - truth @ predicted
        variance = (rows**2 - truth @ truth) * (rows**2 - predicted @ predicted)
        value = covariance / variance.sqrt() if variance > 0 else torch.zeros(())
        return value.float().to(counts.device)
