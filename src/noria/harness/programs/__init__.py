"""Harness programs that come with noria. Copy one to change it."""
