"""What a linear model makes of the same texts: what a Transformer has to beat to be worth its while."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jobs.common.data.dataset import SPLITS, SplitName
from jobs.common.evaluation.classification import judge_split
from jobs.common.evaluation.metrics import Evaluation
from jobs.common.report import html
from jobs.common.report.html import Section
from jobs.common.training.job import TrainingResult
from jobs.common.training.predictions import Predictions
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import read_texts

Ids = npt.NDArray[np.int64]


def letters(trained: TrainingResult) -> Evaluation:
    """What `fitted` is worth."""
    rows: dict[SplitName, Ids] = {
        split: trained.rows(split, np.arange(trained.dataset.splits[split].num_rows))["row_id"] for split in SPLITS}
    return judge_split(trained, fitted(trained.config, rows))


def fitted(config: TransformerConfig, rows: Mapping[SplitName, Ids] | None = None) -> Predictions:
    """TF-IDF of 1 to 4 letters within words (min_df 2, sublinear) and logistic regression (C 10):
    on the split's test rows. rows: ids of each split's, where some were dropped; by default all."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    found = read_texts(config)
    assert found.codes is not None
    chosen = rows or {split: found.of(split) for split in SPLITS}
    training, test = chosen["train"], chosen["test"]
    counts = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=2, sublinear_tf=True)
    known = counts.fit_transform([found.texts[i] for i in training])
    model = LogisticRegression(C=10, max_iter=200).fit(known, found.codes[training])
    answers = model.predict_proba(counts.transform([found.texts[i] for i in test])).astype(np.float32)
    return Predictions(test, found.codes[test].astype(np.int64), answers)


def section(model: Evaluation, baseline: Evaluation) -> Section:
    """Both side by side, with their intervals."""
    names = (("macro-F1", "macro_f1"), ("accuracy", "accuracy"))
    cells = [(title, *(f"{getattr(e, name):.4f} ({getattr(e, f'{name}_low'):.4f} – {getattr(e, f'{name}_high'):.4f})"
                       for e in (model, baseline))) for title, name in names]
    cells.append(("log loss", f"{model.log_loss:.4f}", f"{baseline.log_loss:.4f}"))
    intro = ("The same test rows, judged by this model and by a logistic regression on the TF-IDF of 1 to 4 letters, "
             "fitted to the same training rows; in brackets 95% intervals.")
    return html.section("Against a linear model", intro, ["metric", "this model", "linear model"], cells)
