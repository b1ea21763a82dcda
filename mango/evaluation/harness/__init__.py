"""Tasks of the lm-evaluation-harness, run through its Python API; it is imported when a task is asked for."""

from mango.evaluation.harness.comparison import document, score_subjects
from mango.evaluation.harness.scoring import Harness, Score, Scores
from mango.evaluation.harness.tasks import harness_version, load_tasks

__all__ = ["Harness", "Score", "Scores", "document", "harness_version", "load_tasks", "score_subjects"]
