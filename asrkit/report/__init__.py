"""A study in words, tables and pictures: collect -> measures -> words, tables, figures -> page, export."""
