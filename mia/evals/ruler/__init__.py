"""Measuring how well long texts are read: tasks in the manner of RULER at any length, and RULER-HotpotQA."""
