"""Preferences: pairs of answers, the loss of Direct Preference Optimisation, and the reference it is measured from."""
