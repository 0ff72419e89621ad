"""Weights: every matrix and norm summarised, of a loaded model or straight from a checkpoint's files."""
