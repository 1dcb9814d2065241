"""Weights of others and for others: PyTorch files and their names. Imports models and below."""
