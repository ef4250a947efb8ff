"""Audits of forgetting: attacks on one model and on ensembles, relearning, shadow models, and all of them together."""
