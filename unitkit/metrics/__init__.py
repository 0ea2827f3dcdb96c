"""Evaluation: pure functions on arrays, texts and unit files, thin adapters to pretrained judges, and score tables."""
