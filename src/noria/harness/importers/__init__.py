"""Tasks of others as ours: Harbor task folders, verifiers tasksets, Inspect tasks. See docs/importing_tasks.md."""
