"""Workloads: the content of requests, and when they are due."""
