"""Planner and Executor: who plans, and who searches."""
