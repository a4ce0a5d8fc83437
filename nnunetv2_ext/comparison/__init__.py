"""Comparison of finished trainings: paired statistics over cases, what each costs, and whether they compare fairly."""
