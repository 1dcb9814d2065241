"""Runs and configs as text and pages for people. Imports inference, training and below."""
