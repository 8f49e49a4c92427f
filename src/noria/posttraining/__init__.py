"""Post-training: supervised fine-tuning, group-relative policy optimisation, rejection sampling."""

from noria.posttraining.grpo import Grade, GrpoConfig, Monitor, Roll, annotate, group_advantages, improve
from noria.posttraining.sft import Example, SftConfig, example, fine_tune, trace_examples

__all__ = [
    "Example",
    "Grade",
    "GrpoConfig",
    "Monitor",
    "Roll",
    "SftConfig",
    "annotate",
    "example",
    "fine_tune",
    "group_advantages",
    "improve",
    "trace_examples",
]
