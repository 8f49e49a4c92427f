"""Distillation: students from a teacher's traces and from its distributions."""

from noria.distillation.logits import distil, distillation_batch
from noria.distillation.traces import load_traces, save_traces, teacher_draws

__all__ = ["distil", "distillation_batch", "load_traces", "save_traces", "teacher_draws"]
