"""The feedback loops: traffic to data (A), evaluations to the next pretraining mixture (B)."""
