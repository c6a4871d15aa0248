"""Optimizers and which parameters each of them gets."""
