"""Interviews with simulated clients, each played from a case that the interviewer is to find out."""
