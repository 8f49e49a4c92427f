"""Deployment: the gateway that serves a model and logs its traffic, int8 weights, and the release verdict."""
