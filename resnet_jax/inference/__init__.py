"""Finished runs put to use: restored, scored, exported. Imports training and below."""
