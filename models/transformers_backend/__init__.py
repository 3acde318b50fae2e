"""Architectures without a family: transformers' own modelling code over our pages, by its attention interface.

Importing any module of this folder imports transformers, so nothing else does until such an architecture is asked for.
"""
