"""The command line `python -m rlgenkit ...`: everything that surrounds the notebooks.

Only this layer and the notebooks may import `rlgenkit.workbook`.
"""
