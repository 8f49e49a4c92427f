"""Environments: generators of agent tasks with their gold solutions, graders and demonstrations."""
