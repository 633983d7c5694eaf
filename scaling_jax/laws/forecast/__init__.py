"""Forecasts of learning curves: the end of a run, another schedule, a larger model."""
