"""Rounding that keeps the outputs of a matrix: error feedback with the correlations of its inputs."""
